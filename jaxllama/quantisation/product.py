"""Products with quantised weights, which read few bytes of them.

XLA on a CPU has a product of int8 with int8. Of int8 with floats it makes a copy of all weights
in floats first, which takes five times as long as reading the floats would. So a few rows are
taken apart into digits of int8, three of which are as fine as float32 is at the row's largest
number: the products of digits are exact whole numbers, and one pass over the weights serves all
digits. Many rows, whose product outweighs a copy, meet the weights in floats, some rows of weights
at a time. Figures: docs/quantisation.md.

Shapes: R rows, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxllama.dtypes import at_least_float32
from jaxllama.quantisation.arrays import Int8Array, Quantised

# Rows up to which digits are faster on a CPU than a copy of the weights.
_FEW = 24
# 127 * 2 * 127 * 2 * 127: finer than the 24 bits of a float32's fraction.
_DIGITS = 3
_LARGEST, _BASE = 127, 254
# Numbers of a block of weights that are widened at a time, so that they stay in a core's own cache,
# and most blocks: each costs some microseconds by itself.
_BLOCK, _MOST_BLOCKS = 1 << 16, 32


def quantised_product(
    x: Float[Array, "... i"], weight: Quantised, dtype: DTypeLike
) -> Float[Array, "... o"]:
    """Return x W^T, summed in at least float32, then rounded to `dtype`.

    Args:
        x: one vector a token.
        weight: [o, i].
        dtype: of the result.
    """
    rows = x.reshape(-1, x.shape[-1])
    wide = at_least_float32(x.dtype)
    if jax.default_backend() != "cpu":
        out = _in_floats(rows, weight.as_int8())
    elif len(rows) <= _FEW and wide.itemsize == 4:
        out = _in_digits(rows, weight)
    else:
        out = _in_blocks(partial(_in_floats, rows), weight)
    out = out * weight.scale.astype(wide)[None, :]
    return out.reshape(*x.shape[:-1], -1).astype(dtype)


def _in_floats(x: Float[Array, "R I"], weight: Int8Array) -> Float[Array, "R O"]:
    """Multiply by whole numbers cast to x's dtype, all of which bfloat16 holds too."""
    wide = at_least_float32(x.dtype)
    return jnp.einsum("ri,oi->ro", x, weight.values.astype(x.dtype), preferred_element_type=wide)


def _in_digits(x: Float[Array, "R I"], weight: Quantised) -> Float[Array, "R O"]:
    """Multiply by whole numbers exactly, x but for what three digits leave of it."""
    if isinstance(weight, Int8Array):
        return _digits_product(x, weight.values)
    return _in_blocks(lambda block: _digits_product(x, block.values), weight)


@jax.custom_jvp
def _digits_product(x: Float[Array, "R I"], values: Int[Array, "O I"]) -> Float[Array, "R O"]:
    largest = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32)
    # Not of zeros alone; NaN stays what it is, and so does the row.
    scale = jnp.where(largest == 0, jnp.ones_like(largest), largest) / _LARGEST
    left, digits = x.astype(jnp.float32) / scale, []
    for _ in range(_DIGITS):
        digit = jnp.round(left)
        digits.append(digit.astype(jnp.int8))
        left = (left - digit) * _BASE
    sums = jax.lax.dot_general(
        jnp.concatenate(digits), values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    total = jnp.zeros((), jnp.float32)
    for part in reversed(jnp.split(sums.astype(jnp.float32), _DIGITS)):
        total = total / _BASE + part
    return total * scale


@_digits_product.defjvp
def _digits_tangent(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """Differentiate what the digits stand for: rounding itself has no slope."""
    x, values = primals
    weight = Int8Array(values, jnp.ones(len(values), jnp.float32))
    return _digits_product(x, values), _in_floats(tangents[0], weight)


def _in_blocks(
    multiply: Callable[[Int8Array], Float[Array, "R o"]], weight: Quantised
) -> Float[Array, "R O"]:
    """Multiply by some rows of a weight after the other, each made int8 or floats by itself."""
    count = _blocks_of(*weight.shape)
    if count == 1:
        return multiply(weight.as_int8())

    def one(block: Quantised) -> Float[Array, "o R"]:
        return multiply(block.as_int8()).T

    blocks = jax.tree.map(lambda part: part.reshape(count, -1, *part.shape[1:]), weight)
    return jax.lax.map(one, blocks).reshape(weight.shape[0], -1).T


def _blocks_of(rows: int, size: int) -> int:
    """Return into how many equal blocks rows of weights are cut: none smaller than `_BLOCK`."""
    wanted = min(_MOST_BLOCKS, max(1, rows * size // _BLOCK))
    return next(count for count in range(wanted, 0, -1) if rows % count == 0)
