"""A cache of int8: what it keeps, what it takes, and that its rows behave as any cache's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_llama import CONFIG, random_weights

from jaxllama import KVCache, Llama
from jaxllama.checkpoint import in_memory
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal, padding
from jaxllama.quantisation import cache_bytes

SMALL = CONFIG.replace(num_hidden_layers=2)
K, H = SMALL.num_key_value_heads, SMALL.head_dim
ROWS, CAPACITY = 3, 11
TOKENS = np.random.default_rng(4).integers(0, SMALL.vocab_size, (ROWS, 6)).astype(np.int32)


@functools.cache
def model_of(form: Any = "stacked") -> Llama:
    return Llama.from_pretrained(
        in_memory(SMALL, random_weights(SMALL)), dtype="float64", form=form
    )


@jax.jit
def step(model: Llama, cache: KVCache, tokens: Any, valid: Any) -> Any:
    positions = cache.lengths[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    queries = Tokens(positions, valid, jnp.zeros_like(positions))
    cache = cache.extend(positions, valid)
    mask = (causal() & padding()).bind(queries, cache.tokens())
    return model(tokens, positions=positions, mask=mask, cache=cache)


def fed(cache: KVCache, columns: slice, form: Any = "stacked") -> tuple[np.ndarray, KVCache]:
    """Feed some columns, the last row's fourth token on being pads."""
    tokens = TOKENS[:, columns]
    valid = np.ones(TOKENS.shape, bool)
    valid[2, 3:5] = False
    logits, cache = step(model_of(form), cache, jnp.asarray(tokens), jnp.asarray(valid[:, columns]))
    return np.asarray(logits)[valid[:, columns]], cache


def empty(dtype: Any = "int8", **options: Any) -> KVCache:
    return KVCache.empty(SMALL, ROWS, CAPACITY, dtype, **options)


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_kept_is_within_half_a_unit_of_each_head(apart: bool) -> None:
    form = "unrolled" if apart else "stacked"
    _, exact = fed(empty("float64", apart=apart), slice(0, 6), form)
    _, cache = fed(empty(apart=apart), slice(0, 6), form)
    assert cache.dtype == np.int8 and cache.capacity == CAPACITY
    assert cache.nbytes == cache_bytes(SMALL, ROWS, CAPACITY, cache.dtype)
    k, v = (np.asarray(part) for part in cache.of_layer(0))  # later layers hold other numbers
    for found, expected in zip((k, v), exact.of_layer(0), strict=True):
        expected = np.asarray(expected)
        unit = np.abs(expected).max(axis=-1, keepdims=True) / 127
        assert found.shape == (ROWS, CAPACITY, K, H)
        assert (np.abs(found - expected) <= 0.501 * unit).all()
        assert np.abs(found - expected).max() > 0
    assert (k[0, 6:] == 0).all() and (k[2, 4:] == 0).all()  # nothing is written past the end


@pytest.mark.parametrize("form", ["stacked", "fused"])
def test_pieces_leave_what_the_whole_leaves(form: Any) -> None:
    whole, kept = fed(empty(apart=form != "stacked"), slice(0, 6), form)
    cache, parts = empty(apart=form != "stacked"), []
    for columns in (slice(0, 4), slice(4, 5), slice(5, 6)):
        _, cache = fed(cache, columns, form)
        parts.append(_)
    assert sum(map(len, parts)) == len(whole)
    np.testing.assert_array_equal(cache.lengths, kept.lengths)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(kept), strict=True):
        if one.dtype == np.int8:  # a last digit may fall to either side
            assert np.abs(np.asarray(one, int) - np.asarray(other)).max() <= 1
        elif jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_one_array_and_an_array_a_layer_are_one_cache() -> None:
    _, cache = fed(empty(), slice(0, 6))
    again = cache.apart().stacked()
    assert cache.apart().made_for == cache.made_for == (2, K, H)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(one, other)
    for layer in range(2):
        for one, other in zip(cache.of_layer(layer), cache.apart().of_layer(layer), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_row_that_is_rewound_goes_on_as_if_never_there() -> None:
    _, cache = fed(empty(), slice(0, 3))
    once, _ = fed(cache, slice(3, 5))
    _, longer = fed(cache, slice(3, 6))
    again, _ = fed(longer.rewind(cache.lengths), slice(3, 5))
    np.testing.assert_array_equal(again, once)
    # Negative control: what is not rewound is seen.
    assert np.abs(fed(longer, slice(3, 5))[0] - once).max() > 1e-6


def test_a_conversation_goes_on_in_it() -> None:
    prompts = [[3, 5, 7], [11]]
    model = model_of("fused")
    first = model.generate(prompts, max_new_tokens=3, eos_ids=(), cache_dtype="int8")
    assert first.cache.dtype == np.int8
    turn = [[int(row[-1]), 9] for row in first.tokens]
    cache = KVCache.empty(SMALL, 2, 32, "int8")
    held = model.generate(prompts, max_new_tokens=3, eos_ids=(), cache=cache, cache_dtype="int8")
    np.testing.assert_array_equal(held.tokens, first.tokens)
    found = model.generate(turn, max_new_tokens=3, eos_ids=(), cache=held.cache, cache_dtype="int8")
    texts = [p + list(map(int, t)) + [9] for p, t in zip(prompts, first.tokens, strict=True)]
    alone = model.generate(texts, max_new_tokens=3, eos_ids=(), cache_dtype="int8")
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=0.05)


def test_another_dtype_than_was_asked_for_is_told() -> None:
    cache = KVCache.empty(SMALL, 1, 32, "int8")
    with pytest.raises(
        InputError, match="cache: keys in int8 and values in int8, expected float64"
    ):
        model_of().generate([[1]], max_new_tokens=1, cache=cache)
    with pytest.raises(InputError, match=r"cache_dtype int4: expected one of f64.*; or int8"):
        model_of().generate([[1]], max_new_tokens=1, cache_dtype="int4")


def test_gradients_through_it_are_refused() -> None:
    def loss(scale: jax.Array, dtype: str) -> jax.Array:
        k = scale * jnp.ones((ROWS, 1, K, H))
        one = jnp.ones((ROWS, 1), jnp.int32)
        return empty(dtype).extend(one, one > 0).write(0, k, k).of_layer(0)[0].sum()

    assert jax.grad(loss)(jnp.float64(2), "float64") == ROWS * K * H
    assert loss(jnp.float64(2), "int8") == pytest.approx(2 * ROWS * K * H, rel=1e-6)
    with pytest.raises(InputError, match="an int8 cache has no gradients"):
        jax.grad(loss)(jnp.float64(2), "int8")
