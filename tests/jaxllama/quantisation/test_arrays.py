"""Whole numbers of few bits: how near they come, what they take, what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.checkpoint import tiny
from jaxllama.errors import InputError
from jaxllama.presets import preset
from jaxllama.quantisation import (
    Int4Array,
    Int8Array,
    Quantised,
    arrays,
    cache_bytes,
    checked_cache_dtype,
    checked_quant,
    weights_bytes,
)
from jaxllama.quantisation.choice import parse_quant

ROWS, INPUTS, GROUP = 6, 24, 8


def numbers() -> np.ndarray:
    """Return rows of very different sizes, one of zeros, one with an outlier in one group."""
    x = np.random.default_rng(0).standard_normal((3, ROWS, INPUTS)).astype(np.float32)
    x *= 10.0 ** np.arange(-3, 3)[None, :, None]
    x[1, 2], x[0, 0, 3] = 0, 0.5
    return x


def filled(into: Quantised, x: np.ndarray) -> Any:
    for index in range(len(x)):  # as a checkpoint's tensors come, one at a time
        into[index] = x[index]
    return into


def floats(held: Quantised) -> np.ndarray:
    return np.asarray(jax.device_put(held).widened(jnp.float64))


def test_int8_is_within_half_a_unit_of_each_vector() -> None:
    x = numbers()
    held = filled(Int8Array.empty(x.shape), x)
    unit = np.abs(x).max(axis=-1, keepdims=True) / 127
    assert (np.abs(floats(held) - x) <= 0.5001 * unit).all()
    assert held.shape == x.shape and np.abs(held.values).max() == 127
    # Of a vector's largest number nothing is lost but float32's own rounding.
    largest = np.abs(x).argmax(axis=-1)[..., None]
    kept = np.take_along_axis(floats(held), largest, -1)
    np.testing.assert_allclose(kept, np.take_along_axis(x, largest, -1), rtol=1e-6)
    # Negative control: a scale for all rows loses the small ones.
    everything: Any = Int8Array.empty((3, ROWS * INPUTS))
    everything[...] = x.reshape(3, -1)
    assert not (np.abs(floats(everything).reshape(x.shape) - x) <= 0.5001 * unit).all()


def test_int8_inside_jit_is_that_of_the_host() -> None:
    x = numbers()
    held, made = filled(Int8Array.empty(x.shape), x), jax.jit(Int8Array.rounded)(x)
    # XLA may multiply by a reciprocal.
    np.testing.assert_allclose(made.scale, held.scale, rtol=2e-7)
    assert np.abs(np.asarray(made.values, int) - held.values).max() <= 1
    assert (made.values == held.values).mean() > 0.99
    made = Int8Array.rounded(jnp.asarray(x).at[0, 0, 0].set(jnp.nan))
    assert np.isnan(made.widened(jnp.float32)[0, 0]).all()
    assert np.isfinite(made.widened(jnp.float32)[0, 1:]).all()


def test_int4_is_within_half_a_step_of_each_group() -> None:
    x = numbers()
    held = filled(Int4Array.empty(x.shape, GROUP), x)
    scale = np.abs(x).max(axis=-1, keepdims=True)[..., None] / 126
    grouped = np.abs(x.reshape(3, ROWS, -1, GROUP)).max(axis=-1, keepdims=True)
    # A step is a whole number of scales, and 7 of them reach the largest number.
    step = np.maximum(np.ceil(grouped / np.where(scale, scale, 1) / 7 - 1e-4), 1) * scale
    gap = np.abs(floats(held) - x).reshape(3, ROWS, -1, GROUP)
    assert (gap <= 0.5001 * step).all()
    assert (held.shape, held.group) == (x.shape, GROUP)
    assert held.steps.min() >= 1 and held.steps.max() == 18
    # Negative control: a group is worth its steps.
    coarse = filled(Int4Array.empty(x.shape, INPUTS), x)
    assert np.linalg.norm(floats(coarse)[0, 0] - x[0, 0]) > np.linalg.norm(
        floats(held)[0, 0] - x[0, 0]
    )


@pytest.mark.parametrize("quant", ["int8", "int4:8"])
def test_rows_are_rounded_some_at_a_time(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, how = numbers(), parse_quant(quant)
    whole = filled(how.empty(x.shape), x)
    monkeypatch.setattr(arrays, "_BLOCK", 4 * INPUTS)
    parts = filled(how.empty(x.shape), x)
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_halves_of_a_byte_keep_their_places() -> None:
    x = np.arange(-6, 6, dtype=np.float32).reshape(1, 12)
    held: Any = Int4Array.empty(x.shape, 12)
    held[...] = x
    assert held.packed.shape == (1, 6) and held.packed.dtype == np.int8
    np.testing.assert_allclose(floats(held), x, atol=0.44)  # half of a step of 6 / 7
    assert (np.diff(floats(held)) >= 0).all()


@pytest.mark.parametrize("parts", [1, 3])
def test_vectors_packed_in_parts_can_be_cut_there(parts: int) -> None:
    x = numbers()
    how = parse_quant("int4:4")
    held = filled(how.empty(x.shape, parts), x)
    np.testing.assert_array_equal(floats(held), floats(filled(how.empty(x.shape), x)))
    size = INPUTS // parts
    for part in range(parts):
        cut = slice(part * size, (part + 1) * size)
        packed, steps = (np.split(leaf, parts, axis=-1)[part] for leaf in (held.packed, held.steps))
        alone = Int4Array(packed, steps, held.scale)
        np.testing.assert_array_equal(floats(alone), floats(held)[..., cut])


@pytest.mark.parametrize(
    ("quant", "wanted", "parts"),
    [("int8", 4, 4), ("int4:4", 6, 6), ("int4:3", 4, 4), ("int4:8", 6, 1), ("int4:3", 8, 1)],
)
def test_parts_have_whole_groups_and_bytes(quant: str, wanted: int, parts: int) -> None:
    assert parse_quant(quant).parts(INPUTS, wanted) == parts


@pytest.mark.parametrize("quant", ["int8", "int4:8"])
def test_bytes_are_those_of_the_arrays(quant: str) -> None:
    how, shape = parse_quant(quant), (3, ROWS, INPUTS)
    held = how.empty(shape)
    assert how.nbytes(shape) == sum(part.nbytes for part in jax.tree.leaves(held))


def test_bytes_of_published_models() -> None:
    config = preset("llama-3.1-405b")
    wide = weights_bytes(config, dtype="bf16")
    assert wide == pytest.approx(2 * 405.85e9, rel=1e-3)
    assert weights_bytes(config, dtype="bf16", quant="int8") / wide == pytest.approx(0.5, abs=0.01)
    assert weights_bytes(config, dtype="bf16", quant="int4") / wide == pytest.approx(0.27, abs=0.01)
    floats, whole = (cache_bytes(config, 2, 10, np.dtype(d)) for d in ("float32", "int8"))
    assert floats == 2 * 126 * 2 * 10 * 8 * 128 * 4 and whole / floats == 0.25 + 1 / 128


CONFIG = tiny().config  # 96 = 6 * 16 and 136 inputs


@pytest.mark.parametrize(
    ("quant", "said"),
    [
        ("int3", "quant int3: expected one of int8, int4, int4:GROUP"),
        ("int8:8", "quant int8:8: expected one of"),
        ("int4:0", "quant int4:0: expected one of"),
        ("int4:x", "quant int4:x: expected one of"),
        ("int4:" + 99 * "9", "quant int4:9+: expected one of"),
        ("int4:9999999", "quant='int4:9999999': groups of 9999999"),
        (8, "quant 8: expected one of"),
        ("int4", "quant='int4': groups of 32 .* intermediate_size is 136; give int4:8"),
        ("int4:16", "quant='int4:16': groups of 16 .* intermediate_size is 136; give int4:8"),
    ],
)
@pytest.mark.ill_typed
def test_what_is_no_quantisation_is_refused(quant: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        checked_quant(quant, CONFIG)


def test_the_group_that_an_error_names_is_taken() -> None:
    found = checked_quant("int4:8", CONFIG)
    assert found is not None and (found.name, found.group) == ("int4:8", 8)
    assert checked_quant(None, CONFIG) is None
    assert checked_quant(found, CONFIG) == found
    odd = CONFIG.replace(intermediate_size=135)
    with pytest.raises(InputError, match="intermediate_size is 135; give int8, which has no gro"):
        checked_quant("int4:3", odd)


def test_a_cache_is_of_floats_or_int8() -> None:
    for name in ("int8", np.int8, jnp.int8, np.dtype("int8")):
        assert checked_cache_dtype(name, "cache_dtype") == np.int8
    assert checked_cache_dtype("bf16", "cache_dtype") == jnp.bfloat16
    for wrong in ("int4", np.int16, "float8"):
        with pytest.raises(InputError, match=r"cache_dtype .*: expected one of f64.*; or int8"):
            checked_cache_dtype(wrong, "cache_dtype")


def test_what_stays_in_floats() -> None:
    config, int4 = CONFIG, parse_quant("int4:8")
    assert int4.of(("layers", 0, "mlp", "gate_up_proj", "weight"), config) == int4
    assert int4.of(("layers", "self_attn", "o_proj", "weight"), config) == int4
    assert int4.of(("lm_head", "weight"), config) == parse_quant("int8")
    for path in (
        ("embed_tokens", "weight"),
        ("norm", "weight"),
        ("layers", 1, "input_layernorm", "weight"),
    ):
        assert int4.of(path, config) is None
    tied = config.replace(tie_word_embeddings=True)
    assert int4.of(("embed_tokens", "weight"), tied) == parse_quant("int8")
