"""Products with whole numbers: as exact as floats, on every way, and read as few bytes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.layers.linear import product
from jaxllama.quantisation import Int4Array, Int8Array, Quantised
from jaxllama.quantisation import product as ways

OUT, INTO = 12, 40


@pytest.fixture(params=["int8", "int4"])
def weight(request: pytest.FixtureRequest) -> Quantised:
    shape = OUT, INTO
    made: Any = Int8Array.empty(shape) if request.param == "int8" else Int4Array.empty(shape, 8)
    made[...] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return jax.device_put(made)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even these weights into blocks."""
    monkeypatch.setattr(ways, "_BLOCK", 3 * INTO)


def inputs(rows: int, dtype: Any) -> jax.Array:
    """Return rows that have a number a thousand times the others, as a model's have."""
    x = np.random.default_rng(1).standard_normal((rows, INTO))
    x[:, 7] *= 1000
    return jnp.asarray(x).astype(dtype)


def apart(found: jax.Array, x: jax.Array, weight: Quantised) -> float:
    """Return how far a product is from NumPy's, over what terms of the largest number add up to."""
    wide, exact = np.asarray(x, np.float64), np.asarray(weight.widened(jnp.float64))
    terms = np.abs(wide).max(axis=1, keepdims=True) * np.abs(exact).sum(axis=1)
    return float((np.abs(np.asarray(found, np.float64) - wide @ exact.T) / terms).max())


@pytest.mark.parametrize("rows", [1, 5, 2 * ways._FEW])
@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-15), ("float32", 1e-7)])
def test_products_are_as_exact_as_floats(
    weight: Quantised, rows: int, dtype: str, near: float
) -> None:
    x = inputs(rows, dtype)
    found = product(x, weight, dtype)
    assert found.dtype == dtype and apart(found, x, weight) < near
    # Negative control: another's scale shows.
    wrong = jax.tree.map(lambda part: part, weight)
    object.__setattr__(wrong, "scale", jnp.roll(weight.scale, 1))
    assert apart(product(x, wrong, dtype), x, weight) > 1e-3


def test_bfloat16_is_rounded_once(weight: Quantised) -> None:
    x = inputs(3, "bfloat16")
    exact = np.asarray(x, np.float64) @ np.asarray(weight.widened(jnp.float64)).T
    found = np.asarray(product(x, weight, "bfloat16"), np.float64)
    assert (np.abs(found - exact) <= 2.0**-8 * np.abs(exact) + 1e-6 * np.abs(exact).max()).all()


def test_a_row_of_zeros_and_one_that_is_not_finite(weight: Quantised) -> None:
    x = inputs(4, "float32").at[0].set(0).at[1, 2].set(jnp.nan).at[2, 3].set(jnp.inf)
    found = np.asarray(product(x, weight, "float32"))
    assert (found[0] == 0).all() and not np.isfinite(found[1:3]).any()
    assert np.isfinite(found[3]).all()


def test_gradients_are_those_of_the_numbers(weight: Quantised) -> None:
    x, pull = inputs(2, "float32"), np.random.default_rng(2).standard_normal((2, OUT))

    def total(x: jax.Array) -> jax.Array:
        return (product(x, weight, jnp.float32) * pull.astype(np.float32)).sum()

    expected = pull @ np.asarray(weight.widened(jnp.float64))
    np.testing.assert_allclose(jax.grad(total)(x), expected, rtol=1e-5)
    # Negative control: rounding by itself would have none.
    assert np.abs(expected).min() > 0


@pytest.mark.optimised
def test_a_product_in_digits_copies_no_weights() -> None:
    made = Int8Array.empty((256, 512))
    made[...] = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    held = jax.device_put(made)

    def temporary(rows: int, way: Any) -> int:
        x = jnp.ones((rows, 512), jnp.float32)
        return jax.jit(way).lower(x, held).compile().memory_analysis().temp_size_in_bytes

    assert temporary(1, ways._in_digits) < 256 * 512 / 4
    # Negative control: floats take four times the bytes that are held.
    assert temporary(1, ways._in_floats) >= 4 * 256 * 512


@pytest.mark.parametrize(("rows", "blocks"), [(12, 4), (7, 1), (9, 3), (3, 1), (66, 22)])
def test_blocks_are_equal_and_not_too_small(rows: int, blocks: int) -> None:
    assert ways._blocks_of(rows, INTO) == blocks
    assert rows % blocks == 0
