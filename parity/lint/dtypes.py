"""Dtypes by the names people use for them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.errors import InputError

_NAMED: dict[str, Any] = {
    "f16": np.float16,
    "float16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "bfloat16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "float32": np.float32,
    "f64": np.float64,
    "float64": np.float64,
}


def dtype_named(name: str) -> np.dtype:
    """Return a floating dtype by name: f16, bf16, f32, f64 or NumPy's names.

    Raises:
        InputError: another name.
    """
    if name not in _NAMED:
        raise InputError(f"dtype {name!r}: expected one of {', '.join(_NAMED)}")
    return np.dtype(_NAMED[name])


def lowest(dtype: np.dtype) -> float:
    """Return the lowest finite number of a floating dtype."""
    return float(ml_dtypes.finfo(dtype).min)
