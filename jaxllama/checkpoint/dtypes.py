"""Dtypes of stored tensors, and casts that round once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jaxllama.dtypes import FLOATS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Elements looked at together, so that temporaries in float64 stay small.
_BLOCK = 1 << 20

# Names in safetensors headers. Those not floating-point are known so that a file that holds them
# can be described; no weight may have them.
SAFETENSORS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
TO_SAFETENSORS = {dtype: name for name, dtype in SAFETENSORS.items()}


def is_float(dtype: np.dtype) -> bool:
    """Whether weights may be stored so: 16, 32 or 64-bit floating-point."""
    return dtype in FLOATS.values()


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round values to a dtype, once and to nearest, ties to even; no copy if nothing changes.

    A library may convert float64 to bfloat16 by way of float32, which rounds twice and so lands
    on the wrong side of a tie; rounding to odd on the way keeps what the second rounding needs.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype == np.float64 and dtype == BFLOAT16:
            values = _round_to_odd(values)
        return values.astype(dtype)


def _round_to_odd(values: np.ndarray) -> np.ndarray:
    near = values.astype(np.float32)
    exact = (near == values) | np.isnan(values)
    bits = near.view(np.uint32)
    # Sign and magnitude: one less is one step towards zero, for either sign.
    truncated = np.where(np.abs(near.astype(np.float64)) > np.abs(values), bits - 1, bits)
    return np.where(exact, bits, truncated | 1).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Loss:
    """What rounding did to a tensor.

    Attributes:
        changed: elements that are not the same.
        size: of how many.
        largest: change of one of them, absolute.
        relative_rms: root of the mean square of all changes, over that of the values; infinite
            where all values were 0.
    """

    changed: int
    size: int
    largest: float
    relative_rms: float


def lost(values: np.ndarray, rounded: np.ndarray) -> Loss:
    """Return what rounding changed."""
    count, largest, squares, power = 0, 0.0, 0.0, 0.0
    flat, other = values.reshape(-1), rounded.reshape(-1)
    for i in range(0, flat.size, _BLOCK):
        block = slice(i, i + _BLOCK)
        before = flat[block].astype(np.float64)
        with np.errstate(invalid="ignore"):
            change = np.abs(other[block].astype(np.float64) - before)
        count += int(np.count_nonzero(change > 0))
        largest = max(largest, float(change.max(initial=0.0, where=change > 0)))
        squares += float(change @ change)
        power += float(before @ before)
    relative = math.sqrt(squares / power) if power else math.inf if squares else 0.0
    return Loss(count, flat.size, largest, relative)
