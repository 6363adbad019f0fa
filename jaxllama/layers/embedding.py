"""Vectors of tokens."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxllama.layers.initial import normal


class Embedding(nnx.Module):
    """A table of vectors [V, D], one per token id."""

    def __init__(self, vocab: int, size: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = normal(rngs, (vocab, size), param_dtype)

    def __call__(self, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
        # An id outside the table would otherwise be clamped to its last row: here it shows as NaN.
        rows = self.weight[...].at[tokens]
        found = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return found.astype(dtype)
