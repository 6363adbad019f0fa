"""Which dtypes a model may have, and the one rule for wider arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxllama.errors import InputError

FLOATS = ("float64", "float32", "bfloat16", "float16")


def checked_float(dtype: DTypeLike, name: str = "dtype") -> np.dtype:
    """Return `dtype` as a numpy dtype, once it is known that JAX will really use it.

    Args:
        dtype: float64, float32, bfloat16 or float16.
        name: what the caller calls it, for the error.

    Raises:
        InputError: another dtype, or float64 while JAX is set to 32 bits, where it would be cut to
            float32 with no more than a warning.
    """
    found = jnp.dtype(dtype)
    if found.name not in FLOATS:
        raise InputError(f"{name} {found.name}: expected one of {', '.join(FLOATS)}")
    if found == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError(
            f"{name} float64: JAX is set to 32 bits and would compute in float32; call "
            'jax.config.update("jax_enable_x64", True) first, or set JAX_ENABLE_X64=1'
        )
    return found


def widened(dtype: DTypeLike) -> np.dtype:
    """Return `dtype` promoted to at least float32.

    A hard-coded float32 would cut a float64 run down; this keeps it whole, so that the same code
    serves as its own reference. (NumPy's promotion: JAX's refuses to mix under strict rules.)
    """
    return np.promote_types(jnp.dtype(dtype), np.float32)
