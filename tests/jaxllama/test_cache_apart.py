"""A cache with an array for each layer: what one array of all layers holds, and gradients too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_llama import CONFIG, random_weights

from jaxllama import Llama
from jaxllama.cache import KVCache, _put
from jaxllama.checkpoint import in_memory
from jaxllama.errors import InputError
from jaxllama.loss import next_token_loss
from jaxllama.masks import Tokens, causal, padding

SMALL = CONFIG.replace(num_hidden_layers=2)
CHECKPOINT = in_memory(SMALL, random_weights(SMALL))
CAPACITY = 9


@functools.cache
def model_of(form: Any, dtype: str) -> Llama:
    return Llama.from_pretrained(CHECKPOINT, dtype=dtype, form=form)


@jax.jit
def step(model: Llama, cache: KVCache, tokens: Any, valid: Any) -> Any:
    positions = cache.lengths[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    queries = Tokens(positions, valid, jnp.zeros_like(positions))
    cache = cache.extend(positions, valid)
    mask = (causal() & padding()).bind(queries, cache.tokens())
    return model(tokens, positions=positions, mask=mask, cache=cache)


def fed(form: Any, dtype: str, rows: int, *, apart: bool) -> tuple[list[np.ndarray], KVCache]:
    """Return logits of a ragged prompt and of two tokens after it, and the cache."""
    model = model_of(form, dtype)
    tokens = np.random.default_rng(4).integers(0, SMALL.vocab_size, (rows, 6))
    cache = KVCache.empty(SMALL, rows, CAPACITY, dtype, apart=apart)
    found = []
    for columns in (slice(0, 4), slice(4, 5), slice(5, 6)):
        piece = jnp.asarray(tokens[:, columns])
        valid = jnp.ones(piece.shape, bool).at[rows - 1, 3:].set(rows == 1)
        out, cache = step(model, cache, piece, valid)
        found.append(np.asarray(jnp.where(valid[..., None], out, 0), np.float64))
    return found, cache


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2])
def test_every_pair_of_forms_writes_and_reads_the_same(rows: int, dtype: str) -> None:
    # One row and one token take a way of their own into the arrays, as do 16 bits.
    expected, kept = fed("stacked", dtype, rows, apart=False)
    near = 1e-12 if dtype == "float64" else 0.05
    for form, apart in (("stacked", True), ("fused", False), ("fused", True)):
        found, cache = fed(form, dtype, rows, apart=apart)
        for one, other in zip(found, expected, strict=True):
            assert np.linalg.norm(one - other) < near * np.linalg.norm(other)
        np.testing.assert_array_equal(cache.lengths, kept.lengths)
        assert isinstance(cache.k, tuple) == (apart and form != "stacked")
        for one, other in ((cache.stacked().k, kept.k), (cache.stacked().v, kept.v)):
            gap = np.asarray(one, np.float64) - np.asarray(other, np.float64)
            assert np.linalg.norm(gap) < near * np.linalg.norm(np.asarray(other, np.float64))
    # Negative control: what another token leaves is told from it.
    other = np.asarray(kept.k, np.float64)
    assert np.linalg.norm(np.roll(other, 1, axis=2) - other) > 10 * near * np.linalg.norm(other)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_has_no_room_is_written_nowhere(dtype: str, apart: bool) -> None:
    full = KVCache.empty(SMALL, 1, 2, dtype, apart=apart)
    ones = jnp.ones((1, 1, SMALL.num_key_value_heads, SMALL.head_dim))

    @jax.jit
    def write(cache: KVCache, value: Any) -> KVCache:
        cache = cache.extend(cache.lengths[:, None], jnp.ones((1, 1), bool))
        return cache.write(1, value * ones, -value * ones).settle()

    for value in (1, 2):
        full = write(full, value)
    # Outside of `jit` a third would be refused.
    over = write(full, 3)
    assert bool(over.overflowed[0]) and not bool(full.overflowed[0])
    for cache in (full, over):
        k, v = (np.asarray(x[0, :, 0, 0], float) for x in cache.of_layer(1))
        assert (k.tolist(), v.tolist()) == ([1, 2], [-1, -2])
        assert not np.asarray(cache.of_layer(0)[0], float).any()


def test_shapes_and_conversions() -> None:
    whole = KVCache.empty(SMALL, 3, CAPACITY, "bfloat16")
    apart = whole.apart()
    assert apart.apart() is apart and whole.stacked() is whole
    assert (apart.capacity, apart.nbytes, apart.dtype) == (CAPACITY, whole.nbytes, whole.dtype)
    assert apart.made_for == whole.made_for == (2, 2, 16)
    both = ([leaf.shape for leaf in jax.tree.leaves(one)] for one in (apart.stacked(), whole))
    assert next(both) == next(both)
    assert apart.of_layer(jnp.int32(1))[0].shape == whole.of_layer(1)[0].shape
    for layer in (2, -1):
        with pytest.raises(InputError, match=f"layer {layer}: expected 0 to 1"):
            apart.of_layer(layer)
    with pytest.raises(InputError, match=r"is being traced.*take the cache stacked\(\)"):
        jax.jit(lambda layer: apart.of_layer(layer)[0])(1)


@pytest.mark.parametrize(
    ("form", "dtype", "near"), [("stacked", "float64", 1e-11), ("fused", "bfloat16", 0.1)]
)
def test_gradients_pass_through_what_a_cache_keeps(
    form: Any, dtype: str, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, SMALL.vocab_size, (2, 7)))
    valid = jnp.ones((2, 7), bool).at[1, 5:].set(False)
    graph, weights = nnx.split(model_of(form, dtype))

    def loss(weights: Any, cached: bool) -> Any:
        model = nnx.merge(graph, weights)
        positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
        queries = keys = Tokens(positions, valid, jnp.zeros((2, 7), jnp.int32))
        cache = None
        if cached:
            cache = KVCache.empty(SMALL, 2, CAPACITY, dtype, apart=form != "stacked")
            cache = cache.extend(positions, valid)
            keys = cache.tokens()
        mask = (causal() & padding()).bind(queries, keys)
        logits, _ = model(tokens, positions=positions, mask=mask, cache=cache)
        return next_token_loss(logits, tokens, valid=valid)

    flat = [
        np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(found)])
        for found in (jax.grad(loss)(weights, True), jax.grad(loss)(weights, False))
    ]
    assert np.linalg.norm(flat[0] - flat[1]) < near * np.linalg.norm(flat[1])
    # Negative control: without what passes through keys and values it would be another gradient.
    monkeypatch.setattr("jaxllama.cache._put", lambda *given: jax.lax.stop_gradient(_put(*given)))
    cut = jax.grad(loss)(weights, True)
    lost = np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(cut)])
    assert np.linalg.norm(lost - flat[1]) > 2 * near * np.linalg.norm(flat[1])
