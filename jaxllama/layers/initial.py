"""Random weights, for models that are not loaded."""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: DTypeLike) -> nnx.Param[Array]:
    """Return weights of 1/sqrt(fan_in): activations stay at unit scale, attention not uniform."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * shape[-1] ** -0.5)
