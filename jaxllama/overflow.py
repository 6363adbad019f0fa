"""Where a forward pass stops being finite, and in whose words to say what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllama.dtypes import at_least_float32
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal
from jaxllama.model import Llama
from jaxllama.taps import Taps

# Holds fills where nothing is seen.
_UNBOUNDED = ("mask", "attn_scores")


def not_finite(model: Llama, row: int, token: int, ids: Sequence[int]) -> InputError:
    """Return the error for logits that are NaN or infinite.

    Args:
        model: what gave them.
        row: which of the prompts.
        token: how many had been written when it happened.
        ids: all tokens before, the prompt's too; none where they are not known.
    """
    said = f"generate: row {row}, new token {token}: the model's logits are not finite"
    name, largest = _first(model, ids) if ids else ("", np.inf)
    ends = float(jnp.finfo(model.dtype).max)
    dtype = np.dtype(model.dtype).name
    if not np.isfinite(largest) or largest <= ends or dtype == "float64":
        began = f" (the first is in {name})" if name else ""
        return InputError(
            f"{said}; check the weights with `jaxllama.checkpoint.validate`, or load the model "
            f"with dtype float32{began}",
            command=f"{said}; check the weights with `jaxllama info CHECKPOINT`, or give "
            f"--dtype f32{began}",
        )
    why = (
        f"{said}: {name} is the first to overflow, with values up to {largest:.3g} where {dtype} "
        f"ends at {ends:.5g}"
    )
    return InputError(
        f"{why}; load the model with dtype bfloat16 or float32",
        command=f"{why}; give --dtype bf16 or --dtype f32",
    )


def _first(model: Llama, ids: Sequence[int]) -> tuple[str, float]:
    """Return the first tap that is not finite, and the largest size of its values in float32."""
    found = _record(model, ids)
    names = (name for name in found if not name.endswith(_UNBOUNDED))
    name = next((n for n in names if not np.isfinite(found[n]).all()), "")
    if not name:
        return "", np.inf
    wide = nnx.merge(*nnx.split(model))
    wide.dtype = at_least_float32(model.dtype)
    return name, float(np.abs(_record(wide, ids)[name]).max())


def _record(model: Llama, ids: Sequence[int]) -> dict[str, np.ndarray]:
    tokens = jnp.asarray([ids], jnp.int32)
    positions = jnp.arange(len(ids), dtype=jnp.int32)[None]
    row = Tokens(positions, jnp.ones_like(positions, jnp.bool_), jnp.zeros_like(positions))
    taps = Taps()
    model(tokens, positions=positions, mask=causal().bind(row, row), tap=taps)
    return {name: np.asarray(value, np.float64) for name, value in taps.recorded().items()}
