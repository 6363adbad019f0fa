"""The one rule for wider arithmetic: at least float32, and never less than the data."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike


def widened(dtype: DTypeLike) -> np.dtype:
    """Return `dtype` promoted to at least float32.

    A hard-coded float32 would cut a float64 run down; this keeps it whole, so that the same code
    serves as its own reference. (NumPy's promotion: JAX's refuses to mix under strict rules.)
    """
    return np.promote_types(jnp.dtype(dtype), np.float32)
