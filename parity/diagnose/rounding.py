"""Rounding that the reference does not do, and how close it must come.

What is rounded stands at a tie now and then, and two honest implementations fall to either side of
it: the nudged variants of a wrong reference (see `MutatedReference.noise_variants`) measure how
    much that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from parity.comparison.tolerance import UNIT_ROUNDOFF
from parity.subjects.torch.arrays import to_torch

if TYPE_CHECKING:
    from parity.diagnose.mutations import MutationSite

# How far values are nudged, in units of the precision they come in: what a few layers add up to.
NUDGE = 32

Round = Callable[[Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """Round to the 10 mantissa bits that tensor cores keep of a float32, ties away from zero."""
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


ROUNDINGS: dict[str, Round] = {
    "float32": lambda x: x.float(),
    "tf32": tf32,
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
}
UNITS = {
    "float32": UNIT_ROUNDOFF["f32"],
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}


def narrower(lane: str) -> list[str]:
    """Return the dtypes with fewer bits than a lane's, the widest first."""
    return [name for name, unit in UNITS.items() if unit > UNIT_ROUNDOFF[lane]]


def has_bits(values: np.ndarray, rounded: Round) -> bool:
    """Return whether every value is one that the rounding leaves alone."""
    x = to_torch(np.asarray(values, np.float64))
    return bool(torch.equal(rounded(x).double(), x))


def narrow(site: MutationSite, x: Tensor, dtype: str, unit: float = 0.0) -> Tensor:
    """Round values to a dtype; see `nudged_rounding`.

    Args:
        site: where; its reference says which variant it is.
        x: the values, kept in their own dtype.
        dtype: one of `ROUNDINGS`.
        unit: roundoff of what made them, where it is coarser than the run's: libraries' functions
            differ by about two of it.
    """
    return nudged_rounding(site.reference, x, dtype, unit)


def nudged_rounding(arithmetic: Any, x: Tensor, dtype: str, unit: float = 0.0) -> Tensor:
    """Round values to a dtype; a reference's nudged variants move them before.

    Args:
        arithmetic: the reference; what is none of our wrong ones is not nudged.
        x: the values, kept in their own dtype.
        dtype: one of `ROUNDINGS`.
        unit: as for `narrow`.
    """
    nudge = getattr(arithmetic, "nudge", 0)
    if nudge and x.numel():
        size = torch.where(x.isfinite(), x.abs(), 0).amax(-1, keepdim=True)
        step = nudge * max(2 * unit, NUDGE * UNIT_ROUNDOFF[arithmetic.dtype])
        # An exact zero is a hidden key, an unwritten slot: no rounding moves it.
        x = torch.where(x == 0, x, x + step * size)
    return ROUNDINGS[dtype](x).to(x.dtype)
