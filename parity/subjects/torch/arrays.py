"""Between torch and numpy without changing a bit, and recording of taps on the torch side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import torch
from numpy.typing import DTypeLike

from jaxllama.errors import InputError
from parity.options import lane_of

TORCH_DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}

View = Callable[[torch.Tensor], torch.Tensor]


def torch_dtype(dtype: DTypeLike) -> torch.dtype:
    """Return the torch dtype of `f64`, `f32` or `bf16`, by any of their names."""
    name = lane_of(dtype)
    if name not in TORCH_DTYPES:
        raise InputError(f"dtype {name!r}: expected one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[name]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` promoted to at least float32."""
    return torch.promote_types(dtype, torch.float32)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array of the same bits; memory is shared where it can be."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy itself has no bfloat16
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor of the same bits; memory is shared where it can be."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch takes neither
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class Recorder:
    """Records taps under their full names and continues with forced values where there are any.

    Args:
        force: replacements by full name, in canonical layout; cast to the dtype of the value
            they replace.
        prefix: put before every name, e.g. `layers.3.`.
    """

    def __init__(self, force: Mapping[str, np.ndarray] | None = None, prefix: str = "") -> None:
        self.values: dict[str, np.ndarray] = {}
        self.prefix = prefix
        self._force = force or {}

    def __call__(
        self,
        name: str,
        value: torch.Tensor,
        canonical: View | None = None,
        native: View | None = None,
    ) -> torch.Tensor:
        """Record `value`; return it, or what is forced in its place.

        Args:
            name: the tap's name, after the prefix.
            value: in the implementation's own layout.
            canonical: brings `value` into the canonical layout; None where it has it already.
            native: the way back, for forced values.
        """
        name = self.prefix + name
        self.values[name] = to_numpy(canonical(value) if canonical else value)
        if name not in self._force:
            return value
        forced = to_torch(self._force[name]).to(value.dtype)
        return native(forced) if native else forced
