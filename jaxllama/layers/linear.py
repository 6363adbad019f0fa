"""Products with weights held as [out, in]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxllama.dtypes import at_least_float32
from jaxllama.layers.initial import normal
from jaxllama.layers.low_rank import LowRank
from jaxllama.quantisation import Quantised
from jaxllama.quantisation.product import quantised_product

# Rows up to which XLA's CPU products are faster with the weight as the left operand.
_FEW = 16


def product(
    x: Float[Array, "... i"], weight: Float[Array, "o i"] | Quantised | LowRank, dtype: DTypeLike
) -> Float[Array, "... o"]:
    """Return x W^T: factors in x's dtype, summed in at least float32, then rounded to `dtype`.

    Args:
        x: one vector a token.
        weight: cast to x's dtype; or quantised, see `jaxllama.quantisation`; or with factors.
        dtype: of the result.

    The sum's dtype is said, or XLA widens all of the weight on a CPU before it multiplies. There,
    few rows are multiplied from the other side, and a single one of 16 bits as two alike: it has a
    kernel for those. Figures: docs/performance.md.
    """
    if isinstance(weight, Quantised):
        return quantised_product(x, weight, dtype)
    if isinstance(weight, LowRank):
        return _low_rank_product(x, weight, dtype)
    weight, wide = weight.astype(x.dtype), at_least_float32(x.dtype)
    rows = math.prod(x.shape[:-1])
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and rows == 1 and x.dtype.itemsize == 2:
        two = jnp.concatenate([x.reshape(1, -1)] * 2)
        both = jnp.einsum("ri,oi->ro", two, weight, preferred_element_type=wide)
        out = both[:1].reshape(*x.shape[:-1], -1)
    elif on_cpu and 1 < rows <= _FEW and x.dtype.itemsize == 4:
        # Kept from being turned around again.
        out = jax.lax.optimization_barrier(
            jnp.einsum("oi,ri->or", weight, x.reshape(rows, -1), preferred_element_type=wide)
        ).T.reshape(*x.shape[:-1], -1)
    else:
        out = jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=wide)
    return out.astype(dtype)


def _low_rank_product(
    x: Float[Array, "... i"], weight: LowRank, dtype: DTypeLike
) -> Float[Array, "... o"]:
    """Return x W^T + scale (x A^T) B^T, through the factors in their own dtype if that is wider."""
    wide = at_least_float32(x.dtype)
    whole = product(x, weight.base, wide)
    x = x.astype(np.promote_types(x.dtype, weight.a.dtype))
    added = product(product(x, weight.a, x.dtype), weight.b, wide)
    return (whole + weight.scale.astype(wide) * added).astype(dtype)


class Linear(nnx.Module):
    """A product with a weight held as [out, in], without bias."""

    def __init__(self, size_in: int, size_out: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = normal(rngs, (size_out, size_in), param_dtype)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return product(x, self.weight[...], x.dtype)


class FusedLinear(nnx.Module):
    """Products of one input with several weights, held below each other and done as one."""

    def __init__(
        self, size_in: int, sizes_out: Sequence[int], *, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.weight = normal(rngs, (sum(sizes_out), size_in), param_dtype)
        self.ends = tuple(accumulate(sizes_out))[:-1]

    def __call__(self, x: Float[Array, "... i"]) -> list[Float[Array, "... _"]]:
        return jnp.split(product(x, self.weight[...], x.dtype), self.ends, axis=-1)
