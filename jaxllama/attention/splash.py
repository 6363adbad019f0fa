"""Attention by JAX's splash kernel for TPUs, of masks that are causality, a window and lengths.

The kernel is told a rule by name, skips the blocks of keys that it hides, and holds no map (Dao et
al. 2022, arXiv 2205.14135); its gradients are kernels, too. What it has no name for is said as two
segments, keys that exist and keys that do not. Several documents in a row are not among that: where
they end is known at run time alone, and has to be proved beforehand (`jaxllama.masks.kernel`).

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim; P padded to whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllama.masks import BoundMask, KernelArguments

# Queries and keys of a block, largest first; a block is whole registers of 128 lanes. Not measured.
_BLOCKS = (512, 256, 128)
# Queries from which it is chosen unasked: fewer are mostly pads of a block.
LEAST_QUERIES = _BLOCKS[-1]


def splash_arguments(
    queries: int, mask: Bool[Array, "B T S"] | BoundMask
) -> KernelArguments | None:
    """Return what the kernel is to be told, None where it cannot be told the mask exactly.

    Args:
        queries: T. One alone reads its keys once, whoever asks: there is nothing to skip.
        mask: what may be seen.
    """
    if queries == 1 or not isinstance(mask, BoundMask) or mask.structure is None:
        return None
    return mask.kernel_arguments()


@dataclass(frozen=True)
class _Rule:
    """What is known when a program is made."""

    causal: bool
    window: int | None  # the last keys that a query sees, its own among them
    scale: float
    interpret: bool


def attend_splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    arguments: KernelArguments,
    scale: float,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attend from every query to the keys that the arguments show.

    Queries are scaled before the kernel, and rounded to their dtype: once more than elsewhere,
    unless the scale is a power of two.

    Args:
        q: rotated queries.
        k: rotated keys.
        v: values.
        arguments: of `splash_arguments`.
        scale: factor on the scores.
        interpret: whether the kernel is run without a TPU, slowly, as it would compute there.
    """
    sizes = arguments.local_window_size
    window = None if sizes is None else sizes[0] + 1
    rule = _Rule(arguments.is_causal, window, scale, interpret)
    keys = slice(arguments.keys)
    out = _attend(q, k[:, keys], v[:, keys], arguments.key_value_seq_lengths, rule)
    assert arguments.live is not None  # a mask that is told by name knows its live rows
    return jnp.where(arguments.live[:, :, None, None], out, jnp.zeros_like(out))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, lengths: Int[Array, " B"] | None, rule: _Rule) -> Array:
    with _as_the_kernel_is_written():
        return _run(q, k, v, lengths, rule)


def _forward(
    q: Array, k: Array, v: Array, lengths: Int[Array, " B"] | None, rule: _Rule
) -> tuple[Array, Any]:
    with _as_the_kernel_is_written():
        return jax.vjp(lambda q, k, v: _run(q, k, v, lengths, rule), q, k, v)


def _backward(rule: _Rule, pull: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    with _as_the_kernel_is_written():
        to_q, to_k, to_v = pull(gradient)
    return to_q, to_k, to_v, None


_attend.defvjp(_forward, _backward)


@contextmanager
def _as_the_kernel_is_written() -> Iterator[None]:
    """It computes with indices of 32 bits, and mixes their dtypes."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def _run(q: Array, k: Array, v: Array, lengths: Int[Array, " B"] | None, rule: _Rule) -> Array:
    # Imported here: half a second, and a package of experiments that only TPUs have a use for.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (B, T, N, _), S = q.shape, k.shape[1]
    queries, keys = _padded(T), _padded(S)
    shape = (queries, keys)
    mask: Any
    if rule.window is not None:
        mask = splash.LocalMask(shape, (rule.window - 1, 0), 0)
    else:
        mask = splash.CausalMask(shape) if rule.causal else splash.FullMask(shape)
    segments = None
    if lengths is not None or not rule.causal:  # causality hides the pads of as many keys
        ends = jnp.full((B,), S, jnp.int32) if lengths is None else lengths
        there = jnp.arange(keys, dtype=jnp.int32)[None] < ends[:, None]
        segments = splash.SegmentIds(jnp.ones((B, queries), jnp.int32), there.astype(jnp.int32))
    rows, columns = _block(queries), _block(keys)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * N),
        block_sizes=splash.BlockSizes(
            *(rows, columns, columns), *(rows, columns, columns), *(rows, columns)
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=rule.interpret,
    )
    by_head = (_heads_first(x, n) for x, n in ((q * rule.scale, queries), (k, keys), (v, keys)))
    return jax.vmap(kernel)(*by_head, segments).swapaxes(1, 2)[:, :T]


def _heads_first(x: Float[Array, "B n K H"], size: int) -> Float[Array, "B K P H"]:
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)


def _padded(size: int) -> int:
    return -(-size // _BLOCKS[-1]) * _BLOCKS[-1]


def _block(padded: int) -> int:
    return next(size for size in _BLOCKS if padded % size == 0)
