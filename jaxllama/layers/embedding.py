"""Vectors of tokens."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxllama.layers.initial import normal
from jaxllama.quantisation import Int8Array


class Embedding(nnx.Module):
    """A table of vectors [V, D], one per token id."""

    def __init__(self, vocab: int, size: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = normal(rngs, (vocab, size), param_dtype)

    def __call__(self, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
        # An id outside the table would otherwise be clamped to its last row: here it shows as NaN.
        def rows(table: Array, missing: float) -> Array:
            found = table.at[tokens]
            return found.get(mode="fill", fill_value=missing, wrap_negative_indices=False)

        table: Array | Int8Array = self.weight[...]
        if isinstance(table, Int8Array):  # the head's too
            return Int8Array(rows(table.values, 0), rows(table.scale, jnp.nan)).widened(dtype)
        return rows(table, jnp.nan).astype(dtype)
