"""How many bytes a parameter's numbers take, in floats or quantised: the one place that knows.

Shapes: O output features, I input features of a product.
"""

from __future__ import annotations

import math

import numpy as np

from jaxllama.errors import InputError, argument
from jaxllama.forms import Path

QUANTS = ("int8", "int4")
# Inputs that share a scale in int4.
_GROUP = 32
_SCALE_BYTES = 4


def checked_quant_name(quant: str | None) -> str | None:
    """Return how weights are held: `int8`, `int4`, or None for floats.

    Raises:
        InputError: another name.
    """
    if quant is not None and quant not in QUANTS:
        raise InputError(f"{argument('quant', quant)}: expected one of {', '.join(QUANTS)}")
    return quant


def held_bytes(path: Path, shape: tuple[int, ...], dtype: np.dtype, quant: str | None) -> int:
    """Return what a parameter, or a device's part of it, takes in bytes.

    The layers' products are quantised; embedding, head and norms are not. int8 has a byte for each
    weight and a float32 scale for each output feature; int4 half a byte, and a scale for each
    group of 32 inputs, of which a part that is begun counts whole.

    Args:
        path: as in `nnx.to_flat_state`.
        shape: [..., O, I] of a product's weight.
        dtype: of what is held in floats.
        quant: as `checked_quant_name` returns it.
    """
    size = math.prod(shape)
    if quant is None or not str(path[-2]).endswith("_proj"):
        return size * dtype.itemsize
    *rows, inputs = shape
    outputs = math.prod(rows)
    if quant == "int8":
        return size + _SCALE_BYTES * outputs
    return -(-size // 2) + _SCALE_BYTES * outputs * -(-inputs // _GROUP)
