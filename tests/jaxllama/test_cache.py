"""The cache: whatever way tokens go in, what comes out is the forward pass without a cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llama import CONFIG, build, padded_rows, random_tokens, visible

from jaxllama.cache import KVCache
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal, padding, segments
from jaxllama.model import Llama
from jaxllama.taps import Taps

MODEL = build()
B, T, S = 3, 16, 19
# Chunks are filled up with pads to one of these lengths: a program is compiled for each.
BUCKETS = (1, 5, 16)


@functools.partial(jax.jit, static_argnames="packed")
def step(model: Llama, cache: KVCache, tokens: Any, queries: Tokens, packed: bool = False) -> Any:
    cache = cache.extend(queries.positions, queries.valid, queries.segments)
    spec = causal() & padding() & segments() if packed else causal() & padding()
    mask = spec.bind(queries, cache.tokens())
    return model(tokens, positions=queries.positions, mask=mask, cache=cache)


@jax.jit
def uncached(model: Llama, tokens: Any, positions: Any, mask: Any) -> Any:
    return model(tokens, positions=positions, mask=mask)[0]


def side(positions: np.ndarray, valid: np.ndarray, documents: np.ndarray | None = None) -> Tokens:
    documents = np.zeros_like(positions) if documents is None else documents
    return Tokens(*(jnp.asarray(x) for x in (positions, valid, documents.astype(np.int32))))


def feed(
    cache: KVCache,
    tokens: np.ndarray,
    positions: np.ndarray,
    valid: np.ndarray,
    chunks: Sequence[int],
    documents: np.ndarray | None = None,
) -> tuple[np.ndarray, KVCache]:
    """Run columns through the cache, some at a time; return the logits of all, and the cache."""
    logits, start = [], 0
    documents = np.zeros_like(positions) if documents is None else documents
    for size in chunks:
        bucket = next(bucket for bucket in BUCKETS if bucket >= size)

        def cut(a: np.ndarray, start: int = start, size: int = size, bucket: int = bucket) -> Any:
            return np.pad(a[:, start : start + size], ((0, 0), (0, bucket - size)))

        queries = side(cut(positions), cut(valid), cut(documents))
        out, cache = step(MODEL, cache, jnp.asarray(cut(tokens)), queries, packed=documents.any())
        logits.append(np.asarray(out)[:, :size])
        start += size
    assert start == tokens.shape[1]
    return np.concatenate(logits, axis=1), cache


def empty(dtype: str = "float64", batch: int = B, capacity: int = S) -> KVCache:
    return KVCache.empty(CONFIG, batch, capacity, dtype)


def error(found: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max())


TOKENS = random_tokens(CONFIG, B, T)


@st.composite
def chunkings(draw: Any) -> list[int]:
    sizes: list[int] = []
    while (left := T - sum(sizes)) > 0:
        sizes.append(draw(st.integers(1, left)))
    return sizes


# In and out


@settings(max_examples=20)
@given(
    chunks=st.one_of(chunkings(), st.just([1] * T), st.just([T])),
    starts=st.lists(st.integers(0, 7), min_size=B, max_size=B),
    stops=st.lists(st.integers(9, T), min_size=B, max_size=B),
    first=st.sampled_from([0, 9000]),
)
def test_any_chunking_of_any_padding_equals_the_uncached_forward_pass(
    chunks: list[int], starts: list[int], stops: list[int], first: int
) -> None:
    positions, valid = padded_rows(T, starts, stops, first)
    mask = visible(positions, valid)
    expected = uncached(MODEL, *(jnp.asarray(x) for x in (TOKENS, positions, mask)))
    logits, cache = feed(empty(), TOKENS, positions, valid, chunks)
    assert error(logits[valid], np.asarray(expected)[valid]) < 1e-10
    np.testing.assert_array_equal(cache.lengths, valid.sum(axis=1))
    slots = np.arange(S) < valid.sum(axis=1)[:, None]
    np.testing.assert_array_equal(np.asarray(cache.positions)[slots], positions[valid])
    # Pads were never written: what lies behind the text is still zero.
    assert not np.asarray(cache.k)[:, ~slots].any()


def test_the_comparison_would_see_a_wrong_position() -> None:
    """Negative control: decode positions that do not advance (faults.md R8), one step of them."""
    positions, valid = padded_rows(T, [0, 2, 0], [T, T, 12])
    expected, _ = feed(empty(), TOKENS, positions, valid, [T])
    stuck = positions.copy()
    stuck[:, -1] = stuck[:, -2]
    logits, _ = feed(empty(), TOKENS, stuck, valid, [T - 1, 1])
    assert error(logits[:2, :-1], expected[:2, :-1]) < 1e-10
    assert error(logits[:2, -1], expected[:2, -1]) > 1e-3


# Few lengths: a row alone compiles anew for each.
@settings(max_examples=6)
@given(
    starts=st.lists(st.sampled_from([0, 3, 6]), min_size=B, max_size=B),
    stops=st.lists(st.sampled_from([12, T]), min_size=B, max_size=B),
)
def test_a_ragged_row_is_what_the_row_is_alone(starts: list[int], stops: list[int]) -> None:
    positions, valid = padded_rows(T, starts, stops)
    together, cache = feed(empty(), TOKENS, positions, valid, [5, 5, 5, 1])
    for row in range(B):
        text = TOKENS[row : row + 1, valid[row]]
        length = text.shape[1]
        alone_positions, alone_valid = padded_rows(length, [0], [length])
        alone, own = feed(empty(batch=1), text, alone_positions, alone_valid, [length])
        assert error(together[row, valid[row]], alone[0]) < 1e-10
        assert error(cache.k[:, row], own.k[:, 0]) < 1e-12
        assert error(cache.v[:, row], own.v[:, 0]) < 1e-12


def test_left_right_and_no_padding_leave_the_same_cache() -> None:
    text = random_tokens(CONFIG, 1, 11, seed=3)[0]
    positions, valid = padded_rows(T, [0, 5, 2], [11, T, 13])
    tokens = np.zeros((B, T), np.int32)
    for row in range(B):
        tokens[row, valid[row]] = text
    _, cache = feed(empty(), tokens, positions, valid, [5, 5, 5, 1])
    for row in (1, 2):
        assert error(cache.k[:, row], cache.k[:, 0]) < 1e-12
        assert error(cache.v[:, row], cache.v[:, 0]) < 1e-12
    assert (np.ptp(cache.positions, axis=0) == 0).all()


def test_several_turns_and_a_rewind() -> None:
    turns = [padded_rows(5, [0, 2, 0], [5, 5, 3]), padded_rows(5, [1, 0, 0], [5, 4, 5])]
    cache, said = empty(), []
    for number, (positions, valid) in enumerate(turns):
        positions = positions + np.asarray(cache.lengths)[:, None]
        tokens = random_tokens(CONFIG, B, 5, seed=number)
        logits, cache = feed(cache, tokens, positions, valid, [5])
        said.append([tokens[row, valid[row]] for row in range(B)])
    np.testing.assert_array_equal(cache.lengths, [9, 7, 8])

    def alone(text: np.ndarray) -> np.ndarray:
        shape = padded_rows(len(text), [0], [len(text)])
        return feed(empty(batch=1), text[None], *shape, [len(text)])[0][0]

    for row in range(B):
        valid = turns[1][1][row]
        expected = alone(np.concatenate([said[0][row], said[1][row]]))
        assert error(logits[row, valid], expected[-valid.sum() :]) < 1e-10

    # Back to different points of both turns, on with another text.
    kept = np.array([2, 3, 6])
    back = cache.rewind(jnp.asarray(kept))
    other = random_tokens(CONFIG, B, 5, seed=9)
    positions = kept[:, None] + np.arange(5)[None]
    logits, back = feed(back, other, positions, np.ones((B, 5), bool), [5])
    np.testing.assert_array_equal(back.lengths, kept + 5)
    for row in range(B):
        before = np.concatenate([said[0][row], said[1][row]])[: kept[row]]
        expected = alone(np.concatenate([before, other[row]]))
        assert error(logits[row], expected[-5:]) < 1e-10


def test_packed_documents_do_not_see_each_other() -> None:
    positions = np.tile(np.concatenate([np.arange(7), np.arange(9)]), (B, 1)).astype(np.int32)
    documents = np.tile(np.repeat([0, 1], [7, 9]), (B, 1))
    valid = np.ones((B, T), bool)
    logits, _ = feed(empty(), TOKENS, positions, valid, [5, 5, 5, 1], documents)
    second = TOKENS[:, 7:]
    alone, _ = feed(empty(), second, *padded_rows(9, [0] * B, [9] * B), [5, 4])
    assert error(logits[:, 7:], alone) < 1e-10


# What may not happen


@jax.jit
def extended(cache: KVCache, positions: Any, valid: Any) -> KVCache:
    return cache.extend(positions, valid)


@functools.cache
def nearly_full() -> KVCache:
    """Return a cache of 6 slots whose rows hold 5, 3 and 6 tokens."""
    positions, valid = padded_rows(6, [0, 0, 0], [5, 3, 6])
    tokens = TOKENS[:, :6]
    return feed(empty(capacity=6), tokens, positions, valid, [5, 1])[1]


def test_overflow_is_an_error_on_the_host() -> None:
    positions, valid = padded_rows(2, [0, 0, 2], [2, 2, 2], first=6)
    message = r"row 0 would hold 7 tokens, the cache has 6 slots; make it with a larger capacity"
    with pytest.raises(InputError, match=message):
        nearly_full().extend(jnp.asarray(positions), jnp.asarray(valid))
    # Control: what fits is taken.
    fits = padded_rows(2, [1, 0, 2], [2, 2, 2], first=6)
    cache = nearly_full().extend(*(jnp.asarray(x) for x in fits))
    np.testing.assert_array_equal(cache.lengths, [6, 5, 6])
    assert not cache.overflowed.any()


def test_overflow_on_the_device_drops_and_touches_no_valid_slot() -> None:
    cache = nearly_full()
    positions, valid = padded_rows(2, [0, 0, 0], [2, 2, 2], first=6)
    queries = side(positions, valid)
    _, after = step(MODEL, cache, jnp.asarray(TOKENS[:, :2]), queries)
    written = np.arange(6) < np.asarray(cache.lengths)[:, None]
    for name in ("k", "v"):
        before, now = np.asarray(getattr(cache, name)), np.asarray(getattr(after, name))
        np.testing.assert_array_equal(now[:, written], before[:, written])
        assert now[:, 0, 5].any()  # the one free slot of row 0 was filled all the same
        # Negative control: a dynamic-update-slice clamps its start, here from slot 6 to slot 4,
        # and overwrites the last tokens of the full row.
        new = jnp.ones((2, *before.shape[3:]))
        full_row = jnp.asarray(before[0, 2])
        clobbered = jax.lax.dynamic_update_slice(full_row, new, (6, 0, 0))
        assert (np.asarray(clobbered)[4:] == 1).all()
        assert (before[0, 2, 4:] != 1).any()
    np.testing.assert_array_equal(after.overflowed, [True, False, True])
    assert after.tokens().valid[0].all()
    # It is found out on the host at the next turn, and a rewind puts it right.
    with pytest.raises(InputError, match="the cache has 6 slots"):
        after.extend(jnp.asarray(positions), jnp.asarray(valid))
    with pytest.raises(InputError, match="row 0 holds 6 tokens, cannot rewind it to 7"):
        after.rewind(jnp.array([7, 1, 1]))
    assert not after.rewind(jnp.array([6, 5, 6])).overflowed.any()


def test_unwritten_slots_are_finite_and_invisible() -> None:
    cache = nearly_full().rewind(jnp.array([2, 3, 1]))
    assert np.isfinite(cache.k).all()
    assert np.isfinite(cache.v).all()
    free = jnp.asarray(np.arange(6) >= np.asarray(cache.lengths)[:, None])[None, :, :, None, None]

    def after(filling: float) -> np.ndarray:
        other = dataclasses.replace(
            cache, k=jnp.where(free, filling, cache.k), v=jnp.where(free, filling, cache.v)
        )
        positions = np.asarray(cache.lengths)[:, None]
        queries = side(positions, np.ones((B, 1), bool))
        return np.asarray(step(MODEL, other, jnp.asarray(TOKENS[:, :1]), queries)[0])

    np.testing.assert_array_equal(after(1e30), after(0.0))
    # Negative control, and why they have to be finite: 0 times NaN is NaN.
    assert np.isnan(after(np.nan)).all()


def test_keys_and_values_are_rounded_to_the_caches_dtype_on_purpose() -> None:
    positions, valid = padded_rows(5, [0, 1, 0], [5, 5, 4])
    queries = side(positions, valid)

    @jax.jit
    def captured(model: Llama, cache: KVCache, tokens: Any) -> Any:
        taps, cache = Taps(), cache.extend(queries.positions, queries.valid)
        mask = (causal() & padding()).bind(queries, cache.tokens())
        given = {"positions": queries.positions, "mask": mask, "cache": cache, "tap": taps}
        return *model(tokens, **given), taps.recorded()

    logits, cache, seen = captured(MODEL, empty("bfloat16"), jnp.asarray(TOKENS[:, :5]))
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
    for i in range(CONFIG.num_hidden_layers):
        for name, source in (("k", "k_rope"), ("v", "v_proj")):
            kept = seen[f"cache.{i}.{name}"]
            assert kept.dtype == jnp.bfloat16
            assert kept.shape == (B, S, CONFIG.num_key_value_heads, CONFIG.head_dim)
            expected = np.asarray(seen[f"layers.{i}.{source}"].astype(jnp.bfloat16))
            np.testing.assert_array_equal(np.asarray(kept)[0, :5], expected[0])
            np.testing.assert_array_equal(np.asarray(kept)[1, :4], expected[1, 1:])
            np.testing.assert_array_equal(kept, getattr(cache, name)[i])
    # What is attended to is what is kept: rounded here as it will be in every later step.
    probs = np.asarray(seen["layers.0.attn_scores"])[0, 0, :, :5]
    query, keys = seen["layers.0.q_rope"][0, :, 0], seen["cache.0.k"][0, :5, 0]
    expected = np.asarray(query) @ np.asarray(keys, np.float64).T / np.sqrt(CONFIG.head_dim)
    assert error(probs, expected) < 1e-13
    exact, _ = feed(empty(), TOKENS[:, :5], positions, valid, [5])
    assert 1e-4 < error(np.asarray(logits)[valid], exact[valid]) < 0.5


# A pytree like any other


def test_the_cache_is_a_pytree_of_static_shapes_that_can_be_donated_and_carried() -> None:
    cache = nearly_full()
    leaves, structure = jax.tree.flatten(cache)
    assert len(leaves) == 6
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.k, cache.k)
    assert cache.nbytes == 2 * 4 * B * 6 * 2 * 16 * 8

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(model: Llama, cache: KVCache, tokens: Any) -> Any:
        def body(cache: KVCache, token: Any) -> Any:
            queries = Tokens(cache.lengths[:, None], jnp.ones((B, 1), bool), None)
            cache = cache.extend(queries.positions, queries.valid)
            queries = dataclasses.replace(queries, segments=jnp.zeros((B, 1), jnp.int32))
            mask = (causal() & padding()).bind(queries, cache.tokens())
            logits, cache = model(token, positions=queries.positions, mask=mask, cache=cache)
            return cache, logits[:, 0]

        return jax.lax.scan(body, cache, tokens)

    tokens = jnp.asarray(TOKENS[:, 5:8].T[:, :, None])
    filled = feed(empty(), TOKENS[:, :5], *padded_rows(5, [0] * B, [5] * B), [5])[1]
    cache, logits = decode(MODEL, filled, tokens)
    assert filled.k.is_deleted()
    expected, _ = feed(empty(), TOKENS[:, :8], *padded_rows(8, [0] * B, [8] * B), [8])
    assert error(np.swapaxes(logits, 0, 1), expected[:, 5:]) < 1e-10
    np.testing.assert_array_equal(cache.lengths, [8] * B)


def test_one_program_per_bucket_whatever_the_chunks() -> None:
    step.clear_cache()
    for chunks in ([3, 4, 1], [2, 5, 1], [4, 2, 2]):
        feed(empty(), TOKENS[:, :8], *padded_rows(8, [0, 1, 2], [8, 8, 7]), chunks)
    assert step._cache_size() == 2


# Bad input


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="batch 0, capacity 5: both must be at least 1"):
        empty(batch=0, capacity=5)
    with pytest.raises(InputError, match=r"KVCache.empty: dtype int4: expected one of f64"):
        empty(dtype="int4")
    cache = empty()
    ones = jnp.ones((B, 2), jnp.int32)
    extend: Any = getattr(KVCache.extend, "__wrapped__", KVCache.extend)
    rewind: Any = getattr(KVCache.rewind, "__wrapped__", KVCache.rewind)
    with pytest.raises(InputError, match=r"positions \(3, 2\), valid \(3, 1\), segments \(3, 2\)"):
        extend(cache, ones, ones[:, :1] > 0)
    with pytest.raises(InputError, match=r"must be \(B, T\) with the cache's B = 3"):
        extend(cache, ones[:2], ones[:2] > 0)
    with pytest.raises(InputError, match="row 1 holds 0 tokens, cannot rewind it to 1"):
        cache.rewind(jnp.array([0, 1, 0]))
    with pytest.raises(InputError, match="cannot rewind it to -1"):
        cache.rewind(jnp.array([-1, 0, 0]))
    with pytest.raises(InputError, match=r"lengths \(2,\), expected \(3,\), one a row"):
        rewind(cache, jnp.array([0, 0]))


def test_a_call_is_extended_for_once_and_made_once() -> None:
    positions, valid = (jnp.asarray(x) for x in padded_rows(2, [0] * B, [2] * B))
    pending = empty().extend(positions, valid)
    with pytest.raises(InputError, match="2 tokens a row is still pending; run the model on it"):
        pending.extend(positions, valid)
    assert pending.settle().extend(positions, valid).lengths.tolist() == [4] * B
    np.testing.assert_array_equal(pending.rewind(jnp.zeros(B, jnp.int32)).lengths, [0] * B)
    mask = (causal() & padding()).bind(side(*padded_rows(2, [0] * B, [2] * B)), pending.tokens())
    tokens = jnp.asarray(TOKENS[:, :2])
    _, done = MODEL(tokens, positions=positions, mask=mask, cache=pending)
    with pytest.raises(InputError, match=r"reserved for tokens \(3, 0\), called with \(3, 2\)"):
        MODEL(tokens, positions=positions, mask=mask, cache=done)


def test_a_cache_that_memory_cannot_hold_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * CONFIG.num_hidden_layers * 3 * 5 * CONFIG.num_key_value_heads * CONFIG.head_dim * 4
    monkeypatch.setattr("jaxllama.cache.free_bytes", lambda: needed)
    assert KVCache.empty(CONFIG, 3, 5, np.float32).capacity == 5
    monkeypatch.setattr("jaxllama.cache.free_bytes", lambda: needed - 1)
    with pytest.raises(InputError, match="a cache of 3 x 5 tokens in float32 takes"):
        KVCache.empty(CONFIG, 3, 5, np.float32)
    monkeypatch.setattr("jaxllama.cache.free_bytes", lambda: None)  # cannot be told
    assert KVCache.empty(CONFIG, 3, 5, np.float32).capacity == 5
