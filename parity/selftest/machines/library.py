"""Elementary functions of another library: as good as ours, and other bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# Below it, what is two units in the last place is no longer told by steps of the bits.
_SMALLEST = 2.0**-120


@dataclass(frozen=True)
class Library:
    """Functions of float32 that err by 1 or 2 units in the last place (ulp).

    Attributes:
        name: in a few words.
        upwards: every result is 2 ulp too large. Otherwise the argument's bits decide between
            1 and 2, too large and too small, as if at random.
    """

    name: str
    upwards: bool = False

    def exp(self, x: Tensor) -> Tensor:
        """Return e to the power of `x`."""
        return self._off(torch.exp, x)

    def rsqrt(self, x: Tensor) -> Tensor:
        """Return the reciprocal of the square root of `x`."""
        return self._off(torch.rsqrt, x)

    def cos(self, x: Tensor) -> Tensor:
        """Return the cosine of `x` radians."""
        return self._off(torch.cos, x)

    def sin(self, x: Tensor) -> Tensor:
        """Return the sine of `x` radians."""
        return self._off(torch.sin, x)

    def logistic(self, x: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-x))."""
        return self._off(torch.sigmoid, x)

    def _off(self, function: Function, x: Tensor) -> Tensor:
        """Move the rounded result of a function; f(0), where it is a whole number, is exact."""
        exact = function(x.double())
        value = exact.float()
        whole = (x == 0) & (exact == exact.round())
        kept = whole | ~value.isfinite() | (value.abs() < _SMALLEST)
        steps = torch.full_like(x, 2.0).int() if self.upwards else _steps(x)
        moved = (value.view(torch.int32) + steps).view(torch.float32)
        return torch.where(kept, value, moved)


def _steps(x: Tensor) -> Tensor:
    """Return -2, -1, 1 or 2, as the bits of `x` have it."""
    mixed = x.contiguous().view(torch.int32).long() * 2654435761
    which = ((mixed >> 16) ^ (mixed >> 29)) & 3
    return torch.tensor([-2, -1, 1, 2], dtype=torch.int32)[which]


SCATTERED = Library("another library's functions")
UPWARDS = Library("functions always 2 ulp high", upwards=True)
