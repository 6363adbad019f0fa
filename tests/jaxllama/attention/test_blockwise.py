"""Attention in blocks: the same as whole maps, in linear memory, and nothing hidden is touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_llama import CONFIG

from jaxllama.attention import attend, blockwise
from jaxllama.attention.blockwise import attend_blockwise, block_size
from jaxllama.attention.reference import attend_reference
from jaxllama.cache import KVCache
from jaxllama.masks import BoundMask, Mask, Tokens, causal, explicit, padding, segments, window
from jaxllama.model import Llama
from jaxllama.taps import Taps, untapped

# Neither length is a whole number of blocks.
B, T, S, N, K, H, SIZE = 2, 13, 21, 6, 3, 5, 4
SCALE = 0.4
RNG = np.random.default_rng(5)
Q, KEYS, V, PULL = (
    RNG.standard_normal(shape) for shape in [(B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)]
)
HOLES = RNG.random((B, T, S)) < 0.3
HOLES[0, 3] = HOLES[1, 8:12] = False  # queries, and a whole block of them, that see nothing
VALID = np.arange(S) >= np.array([[0], [6]])


def bound(spec: Mask, **options: Any) -> BoundMask:
    """Bind a rule to the last T of S tokens, the second row left-padded."""
    positions = np.maximum(np.cumsum(VALID, axis=1) - 1, 0)
    keys = Tokens(positions, VALID, np.arange(S)[None] // 9 + np.zeros((B, 1), int))
    queries = Tokens(positions[:, S - T :], VALID[:, S - T :], keys.segments[:, S - T :])
    return spec.bind(queries, keys, **options)


MASKS: dict[str, Any] = {
    "holes": jnp.asarray(HOLES),
    "explicit": bound(explicit(HOLES)),
    "left-padded": bound(causal() & padding()),
    "packed": bound(causal() & padding() & segments()),
    "window": bound(causal() & padding() & window(5)),
    "self": bound(explicit(HOLES) & padding(), empty_row="self"),
}


def in_blocks(mask: Any, q: Any, k: Any, v: Any) -> jax.Array:
    return attend_blockwise(q, k, v, mask, SCALE, SIZE)


def in_whole_maps(mask: Any, q: Any, k: Any, v: Any) -> jax.Array:
    return attend_reference(q, k, v, mask, SCALE, untapped)


def pulled(attention: Callable[..., Any], mask: Any, *operands: Any) -> tuple[np.ndarray, ...]:
    """Return an attention's context, and what it pulls back to queries, keys and values."""
    return tuple(np.asarray(x, np.float64) for x in _pulled(attention, mask, *operands))


# The mask is given to it: one program serves all that are dense.
@partial(jax.jit, static_argnames="attention")
def _pulled(attention: Callable[..., Any], mask: Any, *operands: Any) -> tuple[jax.Array, ...]:
    out, pull = jax.vjp(partial(attention, mask), *operands)
    return out, *pull(jnp.asarray(PULL, out.dtype))


@pytest.mark.parametrize("mask", MASKS)
def test_context_and_gradients_are_those_of_whole_maps(mask: str) -> None:
    given = MASKS[mask]
    dense = given.to_bool() if isinstance(given, BoundMask) else given
    operands = [jnp.asarray(x, "float64") for x in (Q, KEYS, V)]
    whole = pulled(in_whole_maps, dense, *operands)
    blocks = pulled(in_blocks, given, *operands)
    for one, other in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-13)
    # Negative control: a mask with one cell turned is told from it by each of the four.
    row, query = (0, 5) if mask == "self" else (0, 4)
    turned = dense.at[row, query, query + 1].set(~dense[row, query, query + 1])
    wrong = pulled(in_blocks, turned, *operands)
    assert all(abs(one - other).max() > 1e-5 for one, other in zip(wrong, whole, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("bfloat16", 0.03)])
def test_narrow_dtypes_round_and_no_more(dtype: str, bound: float) -> None:
    operands = [jnp.asarray(x, dtype) for x in (Q, KEYS, V)]
    mask = MASKS["holes"]
    gold = pulled(in_whole_maps, mask, *(x.astype("float64") for x in operands))
    blocks = pulled(in_blocks, mask, *operands)
    for one, other in zip(blocks, gold, strict=True):
        assert np.linalg.norm(one - other) < bound * np.linalg.norm(other)


def test_blocks_that_no_query_sees_are_not_touched() -> None:
    # What lies before the window and after the last key seen is NaN, and stays unread.
    seen = np.zeros((1, 6, 24), bool)
    seen[0, :, 9:15] = True
    keys = np.where(seen.any((0, 1))[:, None, None], 1.0, np.nan)[None].repeat(K, 2).repeat(H, 3)
    poisoned = keys.copy()
    keys[:, 8] = keys[:, 15] = 0  # what shares a block with them is read, as by any attention
    keys, poisoned = jnp.asarray(keys), jnp.asarray(poisoned)
    q = jnp.asarray(RNG.standard_normal((1, 6, N, H)))
    run = jax.jit(partial(attend_blockwise, scale=SCALE, size=SIZE))
    np.testing.assert_allclose(run(q, keys, keys, jnp.asarray(seen)), 1.0, rtol=1e-12)
    # Negative controls: read, they show.
    assert np.isnan(run(q, poisoned, poisoned, jnp.asarray(seen))).all()
    seen[0, 2, 0] = True
    assert np.isnan(run(q, keys, keys, jnp.asarray(seen))).any()


def test_many_queries_are_done_in_blocks_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    real = blockwise.attend_blockwise
    monkeypatch.setattr(
        "jaxllama.attention.backends.attend_blockwise",
        lambda *arguments: sizes.append(arguments[-1]) or real(*arguments),
    )
    for queries in (16, 61, 200):
        q = jax.ShapeDtypeStruct((1, queries, N, H), "float64")
        k = jax.ShapeDtypeStruct((1, queries, K, H), "float64")
        mask = jax.ShapeDtypeStruct((1, queries, queries), "bool")
        for backend in ("xla", "blockwise"):
            jax.eval_shape(partial(attend, scale=SCALE, backend=backend), q, k, k, mask)
        taps = Taps()
        jax.eval_shape(partial(attend, scale=SCALE, tap=taps), q, k, k, mask)
        assert {"attn_scores", "attn_probs"} <= taps.recorded().keys()
    assert sizes == [32, 32, 32, 64, 64]
    assert (block_size(4), block_size(4, always=True)) == (0, 32)


def _memory(backend: Any, tokens: int, *, gradient: bool) -> int:
    """Return the temporaries of a prefill, or of its gradient, in bytes; nothing is allocated."""
    config = CONFIG.replace(max_position_embeddings=tokens, num_hidden_layers=2)
    model = nnx.eval_shape(
        lambda: Llama(config, dtype="float32", backend=backend, rngs=nnx.Rngs(0))
    )
    graph, weights = nnx.split(model)
    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)

    def prefill(weights: Any, ids: Any, lengths: Any) -> Any:
        positions = jnp.arange(tokens, dtype=jnp.int32)[None]
        valid = positions < lengths[:, None]
        cache = None if gradient else KVCache.empty(config, 1, tokens, "float32")
        queries = keys = Tokens(positions, valid)
        if cache is not None:
            cache = cache.extend(positions, valid)
            keys = cache.tokens()
        mask = (causal() & padding()).bind(queries, keys)
        found = nnx.merge(graph, weights).hidden(ids, positions=positions, mask=mask, cache=cache)
        return found[0].sum() if gradient else found

    run = jax.grad(prefill) if gradient else prefill
    found = jax.jit(run).lower(weights, ids, lengths).compile().memory_analysis()
    return int(found.temp_size_in_bytes)


@pytest.mark.optimised
def test_memory_of_a_prefill_is_linear_in_its_length() -> None:
    lengths = np.array([8192, 16384, 32768])
    needed = [_memory("xla", int(n), gradient=False) for n in lengths]
    line = np.polyval(np.polyfit(lengths, needed, 1), lengths)
    assert abs(line - needed).max() < 0.02 * needed[-1]
    # Negative control: whole maps take four times as much for twice the length.
    whole = [_memory("dot_product", int(n), gradient=False) for n in lengths[:2]]
    assert whole[1] > 3.5 * whole[0] > 20 * needed[0]


@pytest.mark.optimised
def test_memory_of_a_gradient_is_linear_in_the_length() -> None:
    # A mask of T times T bytes, kept for the way back, would be seven eighths of the longer one's.
    short, long = (_memory("xla", n, gradient=True) for n in (8192, 32768))
    assert long < 4.2 * short
    # Negative control: of whole maps it is not.
    whole = [_memory("dot_product", n, gradient=True) for n in (2048, 8192)]
    assert whole[1] > 10 * whole[0]
