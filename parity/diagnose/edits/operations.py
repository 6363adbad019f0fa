"""Operations that the reference has no use for, and faults have.

Shapes: B batch, T tokens, S keys, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.diagnose.rounding import nudged_rounding
from parity.subjects.torch_reference.operations import Arithmetic, Reduce, Softmax


@dataclass(frozen=True)
class LinearTransposed:
    """Multiply by a weight [in out] as it lies."""

    said: str = "product with the transposed weight"

    def __call__(self, arithmetic: Arithmetic, x: Tensor, weight: Tensor) -> Tensor:
        return arithmetic.matmul(x, weight.to(arithmetic.compute).to(x.dtype))


@dataclass(frozen=True)
class MultipliedTransposed:
    """A product one of whose operands is transposed before."""

    which: str

    @property
    def said(self) -> str:
        return f"product with the {self.which} operand transposed"

    def __call__(self, arithmetic: Arithmetic, a: Tensor, b: Tensor) -> Tensor:
        if self.which == "first":
            return arithmetic.matmul(a.mT, b)
        return arithmetic.matmul(a, b.mT)


@dataclass(frozen=True)
class MaskedWithout:
    """Hide what ought to be seen, show what ought to be hidden.

    By the lowest finite number, a query that ought to see all sees all alike.
    """

    finite: bool = False

    @property
    def said(self) -> str:
        return "hiding of what is visible" + (", by a finite number" if self.finite else "")

    def __call__(self, arithmetic: Arithmetic, scores: Tensor, visible: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min if self.finite else -torch.inf
        return scores.masked_fill(visible, lowest)


@dataclass(frozen=True)
class ShowHidden:
    """Values where a mask hides, zeros where it shows."""

    said: str = "visible weights are zero"

    def __call__(self, arithmetic: Arithmetic, probs: Tensor, visible: Tensor) -> Tensor:
        return probs.masked_fill(visible, 0)


@dataclass(frozen=True)
class WhereNot:
    """The third input where the first holds, else the second."""

    said: str = "the other of two"

    def __call__(self, arithmetic: Arithmetic, chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen, b, a)


@dataclass(frozen=True)
class OneBased:
    """Number of each rotated pair [R], counted from one."""

    said: str = "numbers of the pairs, from one"

    def __call__(self, arithmetic: Arithmetic, head_dim: float) -> Tensor:
        return torch.arange(1, int(head_dim) // 2 + 1, dtype=torch.float64)


OVER_FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "less its mean": lambda x: x - x.mean(-1, keepdim=True),
    "over its root mean square": lambda x: x / x.square().mean(-1, keepdim=True).sqrt(),
    "over its sum": lambda x: x / x.sum(-1, keepdim=True),
    "less its largest": lambda x: x - x.amax(-1, keepdim=True),
    "softmax": lambda x: x.softmax(-1),
    "sum so far": lambda x: x.cumsum(-1),
}


@dataclass(frozen=True)
class OverFeatures:
    """One of `OVER_FEATURES`, over the last axis."""

    name: str

    @property
    def said(self) -> str:
        return self.name

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return OVER_FEATURES[self.name](x)


@dataclass(frozen=True)
class Rounded:
    """Values rounded through a dtype, and brought back."""

    dtype: str

    @property
    def said(self) -> str:
        return f"rounded through {self.dtype}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return nudged_rounding(arithmetic, x, self.dtype)


@dataclass(frozen=True)
class Clipped:
    """Values cut off at a limit of either sign."""

    limit: float

    @property
    def said(self) -> str:
        return f"cut off at {self.limit:.6g}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return x.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class SoftCapped:
    """Values flattened towards a limit of either sign, the second input: c tanh(x / c)."""

    said: str = "flattened towards a limit"

    def __call__(self, arithmetic: Arithmetic, x: Tensor, limit: float) -> Tensor:
        return limit * (x / limit).tanh()


@dataclass(frozen=True)
class SoftmaxWithSink:
    """Exponentials over one more than their sum: a score of 0 that carries no value."""

    said: str = "exponentials over 1 + their sum"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1)).softmax(-1)[..., :-1]


@dataclass(frozen=True)
class InBlocks:
    """A reduction or a softmax of blocks of its axis, each by itself; the last may be shorter.

    What is reduced stands in each place of its block.
    """

    fn: Reduce | Softmax
    size: int

    @property
    def said(self) -> str:
        return f"{self.fn.said}, in blocks of {self.size} by themselves"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        axis = self.fn.axis
        assert isinstance(axis, int)  # of which alone there are blocks
        blocks = x.split(self.size, axis)
        return torch.cat([self.fn(arithmetic, one).expand_as(one) for one in blocks], axis)


@dataclass(frozen=True)
class Moved:
    """Values of another index along an axis: `by` places before; from beyond the end, nothing.

    `wrapped` takes them from the other end.
    """

    axis: int
    by: int
    wrapped: bool
    said: str = "moved"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        turned = x.roll(self.by, self.axis)
        if self.wrapped:
            return turned
        count, emptied = x.shape[self.axis], turned.clone()
        start = 0 if self.by > 0 else count + self.by
        emptied.narrow(self.axis, max(start, 0), min(abs(self.by), count)).zero_()
        return emptied


@dataclass(frozen=True)
class Reversed:
    """Values in the reverse order along an axis."""

    axis: int
    said: str = "reversed"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return x.flip(self.axis)


@dataclass(frozen=True)
class Regrouped:
    """Indices along an axis, laid out in groups, taken group by group the other way."""

    axis: int
    groups: int
    said: str = "regrouped"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        size = x.shape[self.axis]
        order = torch.arange(size).view(self.groups, -1).T.flatten()
        return x.index_select(self.axis, order)


@dataclass(frozen=True)
class Relaid:
    """Heads apart in kv heads and groups, axes in another order, and the numbers read as before.

    `axis` is that of the heads; None where there are none.
    """

    axis: int | None
    kv_heads: int
    order: tuple[int, ...]
    said: str = "laid out otherwise"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        shape = list(x.shape)
        if self.axis is not None:
            shape[self.axis : self.axis + 1] = self.kv_heads, shape[self.axis] // self.kv_heads
        return x.reshape(shape).permute(self.order).reshape(x.shape)
