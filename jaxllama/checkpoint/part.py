"""Load one part of a model at a time, for checkpoints that do not fit into memory whole."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.load import _checked, raise_problems
from jaxllama.checkpoint.names import TABLE
from jaxllama.errors import InputError
from jaxllama.model import Llama

Part = int | Literal["embed", "head"]


def load_part(
    checkpoint: Checkpoint, part: Part, *, dtype: DTypeLike, param_dtype: DTypeLike
) -> Llama:
    """Build a model of one layer that holds one part's weights; its other weights are empty.

    Args:
        checkpoint: opened; its structure is taken to have been checked (`structure_problems`).
        part: `embed`, a layer's number, or `head`. What can be run of the model is its `embed`,
            its `layer(0)`, or its `head`.
        dtype: of activations and arithmetic.
        param_dtype: of the weights.

    Raises:
        CheckpointError: values that are NaN, infinite or too large for `param_dtype`.
        InputError: no such layer.
    """
    config, target = checkpoint.config, np.dtype(param_dtype)
    if isinstance(part, int) and not 0 <= part < config.num_hidden_layers:
        raise InputError(f"layer {part}: expected 0 to {config.num_hidden_layers - 1}")
    one = config.replace(num_hidden_layers=1)

    def build() -> Llama:
        return Llama(one, dtype=np.dtype(dtype), param_dtype=target, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    wanted = {"embed": ("embed_tokens",), "head": ("norm", "lm_head")}.get(str(part), ("layers",))
    if part == "head" and config.tie_word_embeddings:
        wanted = ("norm", "embed_tokens")
    problems: list[str] = []
    for entry in TABLE:
        if entry.path not in flat:
            continue
        values = jnp.zeros((0,), target)
        if entry.path[0] in wanted:
            layer = part if isinstance(part, int) else None
            read = _checked(checkpoint, entry.name("hf", layer), target, problems)
            values = jax.device_put(read[None] if entry.layered else read)
        flat[entry.path] = flat[entry.path].replace(values)
    raise_problems(checkpoint, problems)
    return nnx.merge(graph, nnx.from_flat_state(flat))
