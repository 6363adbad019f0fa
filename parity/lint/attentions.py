"""Attentions by name, and the ways a mask can be handed to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from jaxllama import dtypes
from jaxllama.attention import attend, check_backend
from jaxllama.concrete import is_traced
from jaxllama.errors import InputError
from jaxllama.taps import Taps
from parity.lint.probe_cases import H, ProbeCase, Probed
from parity.user_code import call, check_callable, import_named

CALLED = (
    "called as function(q [B, T, N, H], k [B, S, K, H], v [B, S, K, H], mask [B, T, S] bool, True ="
    " seen), all JAX's arrays, and has to return [B, T, N, H]"
)
OURS = ("xla", "blockwise", "dot_product", "cudnn", "splash")


def resolve(name: str, dtype: str | None = None) -> Probed:
    """Return an attention by name.

    Args:
        name: xla, blockwise, dot_product, cudnn or splash (this project's), jax
            (`jax.nn.dot_product_attention` with the mask as [B, 1, T, S]), or `module:function`
            called as function(q, k, v, mask).
        dtype: of its inputs; by default float32, bfloat16 for cudnn.

    Raises:
        InputError: no such attention, or this machine cannot run it.
    """
    if name in OURS:
        return _ours(name, dtype or ("bf16" if name == "cudnn" else "f32"))
    if name == "jax":
        return Probed("jax.nn.dot_product_attention", _jax_nn, dtype=dtype or "f32")
    if ":" not in name:
        raise InputError(f"attention {name!r}: expected {', '.join(OURS)}, jax, or module:function")
    found = import_named(name, "attention")
    check_callable(found, f"attention {name}", CALLED, *"qkvm")
    return Probed(name, partial(_users, name, found), dtype=dtype or "f32")


def _users(name: str, function: Callable[..., Any], q: Any, k: Any, v: Any, mask: Any) -> Any:
    out = call(function, f"attention {name}", CALLED, q, k, v, mask)
    if not is_traced(out) and np.shape(out) != q.shape:
        raise InputError(
            f"attention {name}: it returned {type(out).__name__} of shape {np.shape(out)},"
            f" expected {q.shape} = [B, T, N, H]; it is {CALLED}"
        )
    return out


@cache
def _ours(name: str, dtype: str) -> Probed:
    check_backend(name, dtypes.parse(dtype), H)
    scale = H**-0.5

    @jax.jit
    def call(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return attend(q, k, v, mask, scale=scale, backend=name)  # type: ignore[arg-type]

    @jax.jit
    def instrumented(q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any]:
        taps = Taps()
        out = attend(q, k, v, mask, scale=scale, tap=taps)
        return out, taps.recorded()["attn_probs"]

    return Probed(
        f"jaxllama's {name}",
        call,
        structured=name
        in ("dot_product", "cudnn", "splash"),  # the others take every mask cell by cell
        dtype=dtype,
        instrumented=instrumented,
        finite_only=True,
    )


@jax.jit
def _jax_nn(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def ways(probed: Probed, case: ProbeCase) -> Iterator[tuple[str, Any]]:
    """Yield each way to give a case's mask: as bool, and bound where a kernel is told by name."""
    yield case.name, case.mask
    if probed.structured and case.bound.structure is not None:
        yield f"{case.name}, by kernel arguments", case.bound
