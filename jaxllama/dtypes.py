"""Floating dtypes by any of their names, and the one rule for wider arithmetic."""

from __future__ import annotations

from contextlib import suppress

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from jaxllama.errors import InputError, argument

# As reports and command lines have them; NumPy's names and dtypes are taken in their place.
SHORT = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
}
_NAME = argument("dtype")
FLOATS = {dtype.name: dtype for dtype in SHORT.values()}


def parse(dtype: DTypeLike, name: str = _NAME) -> np.dtype:
    """Return a floating dtype.

    >>> parse("bf16") == parse("bfloat16") == parse(ml_dtypes.bfloat16)
    True

    Args:
        dtype: `f32`, `float32`, `jnp.float32`, `np.float32` or NumPy's dtype, and likewise 64, 16
            and `bf16`.
        name: what the caller calls it, for the error.

    Raises:
        InputError: another dtype, or none at all.
    """
    said = str(dtype)
    found: np.dtype | None = None
    if isinstance(dtype, str):  # NumPy would take f8 for float64, where others mean 8 bits
        word = dtype.lower().removeprefix("jnp.").removeprefix("np.").removeprefix("torch.")
        found = SHORT.get(word) or FLOATS.get(word)
    elif dtype is not None:
        with suppress(TypeError):
            said = np.dtype(dtype).name
            found = FLOATS.get(said)
    if found is None:
        raise InputError(
            f"{name} {said or '(nothing)'}: expected one of {', '.join(SHORT)} "
            f"(or {', '.join(FLOATS)})"
        )
    return found


def short_name(dtype: DTypeLike, name: str = _NAME) -> str:
    """Return `f64`, `f32`, `bf16` or `f16`; takes and refuses what `parse` does.

    >>> short_name("float32")
    'f32'
    """
    wanted = parse(dtype, name)
    return next(short for short, found in SHORT.items() if found == wanted)


def checked_float(dtype: DTypeLike, name: str = _NAME) -> np.dtype:
    """Return `dtype` as `parse` does, once it is known that JAX will really use it.

    Raises:
        InputError: no floating dtype, or float64 while JAX is set to 32 bits, where it would be cut
            to float32 with no more than a warning.
    """
    import jax  # here, so that names of dtypes need NumPy alone

    found = parse(dtype, name)
    if found == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError(
            f"{name} float64: JAX is set to 32 bits and would compute in float32; call "
            'jax.config.update("jax_enable_x64", True) first, or set JAX_ENABLE_X64=1'
        )
    return found


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """Return `dtype` promoted to at least float32.

    A hard-coded float32 would cut a float64 run down; this keeps it whole, so that the same code
    serves as its own reference. (NumPy's promotion: JAX's refuses to mix under strict rules.)
    """
    return np.promote_types(parse(dtype), np.float32)
