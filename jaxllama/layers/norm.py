"""Normalisation by the root of the mean square."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxllama.dtypes import at_least_float32


class RMSNorm(nnx.Module):
    """x / rms(x), in at least float32, then rounded to x's dtype and scaled by a weight.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
    """

    def __init__(self, size: int, eps: float, *, param_dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones((size,), param_dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        wide = x.astype(at_least_float32(x.dtype))
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
        return normed * self.weight[...].astype(x.dtype)[None, None, :]
