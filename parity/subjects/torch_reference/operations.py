"""What the steps of the reference's programs do, each a small value that can be compared.

An operation is called with the arithmetic it is done in and its inputs. Equal operations do the
same, so that a program can be searched, edited and put into words.

Shapes: B batch, T queries, S keys, N heads, H head dim, D features in, O features out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights are cast to the run's dtype this many elements at a time, so that a vocabulary of
# 128 256 rows does not stand in memory twice (4 GB in float64 for the 8B model).
CAST_ELEMENTS = 1 << 23


class Arithmetic(Protocol):
    """In which dtypes and in which order numbers are computed; a `TorchModel` is one."""

    compute: torch.dtype
    wide: torch.dtype

    @property
    def backwards(self) -> bool:
        """Whether sums are taken from their other end."""
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Contract the last axis of `a` with the last but one of `b`."""
        ...


Value = Tensor | float


class Operation(Protocol):
    """A step's function: of an `Arithmetic` and its inputs; `said` puts it into a few words."""

    @property
    def said(self) -> str: ...

    def __call__(self, *values: Any, **named: Any) -> Any: ...


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "negative": torch.neg,
    "absolute": torch.abs,
    "square": torch.square,
    "square root": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "exponential": torch.exp,
    "logarithm": torch.log,
    "cosine": torch.cos,
    "sine": torch.sin,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "squared relu": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "zero": torch.zeros_like,
    "one": torch.ones_like,
}
BINARY: dict[str, Callable[..., Tensor]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "max": lambda a, b: torch.maximum(*_tensors(a, b)),
    "min": lambda a, b: torch.minimum(*_tensors(a, b)),
    "the first alone": lambda a, b: _tensors(a, b)[0],
    "the second alone": lambda a, b: _tensors(a, b)[1],
    "one over the second": lambda a, b: 1 / _tensors(a, b)[1],
    "exchanged -": lambda a, b: b - a,
    "exchanged /": lambda a, b: b / a,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "and not": lambda a, b: a & ~b,
    "exclusive or": lambda a, b: a ^ b,
}
REDUCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "mean": lambda x, axis: x.mean(axis, keepdim=True),
    "mean of all": lambda x, axis: x.mean().view((1,) * x.ndim),
    "sum": lambda x, axis: x.sum(axis, keepdim=True),
    "max": lambda x, axis: x.amax(axis, keepdim=True),
    "min": lambda x, axis: x.amin(axis, keepdim=True),
    "product": lambda x, axis: x.prod(axis, keepdim=True),
    "variance": lambda x, axis: x.var(axis, keepdim=True, correction=0),
    "unbiased variance": lambda x, axis: (
        (x - x.mean(axis, keepdim=True)).square().sum(axis, keepdim=True) / (x.shape[axis] - 1)
    ),
}


def _tensors(a: Value, b: Value) -> list[Tensor]:
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    made = [
        torch.as_tensor(x, dtype=like.dtype) if not isinstance(x, Tensor) else x for x in (a, b)
    ]
    return list(torch.broadcast_tensors(*made))


@dataclass(frozen=True)
class Unary:
    """One of `UNARY`, element by element."""

    name: str

    @property
    def said(self) -> str:
        return self.name

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return UNARY[self.name](x)


@dataclass(frozen=True)
class Binary:
    """One of `BINARY`, element by element; either input may be a number."""

    name: str

    @property
    def said(self) -> str:
        return self.name

    def __call__(self, arithmetic: Arithmetic, a: Value, b: Value) -> Tensor:
        return BINARY[self.name](a, b)


def _said_of(axis: int | tuple[int, ...]) -> str:
    return f"axis {axis}" if isinstance(axis, int) else f"axes {' and '.join(map(str, axis))}"


@dataclass(frozen=True)
class Reduce:
    """One of `REDUCTIONS` over an axis, or several, which are kept with one element."""

    name: str
    axis: int | tuple[int, ...] = -1

    @property
    def said(self) -> str:
        return f"{self.name} over {_said_of(self.axis)}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        ordered = x.flip(self.axis) if arithmetic.backwards else x
        return REDUCTIONS[self.name](ordered, self.axis)


@dataclass(frozen=True)
class Cast:
    """To the run's dtype (`compute`), or to it or float32, whichever has more bits (`wide`)."""

    to: str

    @property
    def said(self) -> str:
        return "cast to float32 or wider" if self.to == "wide" else "cast to the run's dtype"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return x.to(arithmetic.wide if self.to == "wide" else arithmetic.compute)


@dataclass(frozen=True)
class CastLike:
    """To the dtype of the second input."""

    said: str = "cast"

    def __call__(self, arithmetic: Arithmetic, x: Tensor, like: Tensor) -> Tensor:
        return x.to(like.dtype)


@dataclass(frozen=True)
class Permute:
    """Axes in another order."""

    axes: tuple[int, ...]

    @property
    def said(self) -> str:
        return f"axes in the order {self.axes}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return x.permute(self.axes)


@dataclass(frozen=True)
class SplitHeads:
    """Features [B T N*H] as heads [B T N H]; `transposed` reads them as [H N]."""

    transposed: bool = False

    @property
    def said(self) -> str:
        return f"split into {'features of heads' if self.transposed else 'heads'}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor, head_dim: float) -> Tensor:
        if self.transposed:
            return x.reshape(*x.shape[:-1], int(head_dim), -1).transpose(-1, -2)
        return x.view(*x.shape[:-1], -1, int(head_dim))


@dataclass(frozen=True)
class JoinHeads:
    """Heads [B T N H] as features [B T N*H]; `transposed` writes them as [H N]."""

    transposed: bool = False

    @property
    def said(self) -> str:
        return f"joined {'feature by feature' if self.transposed else 'head by head'}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return (x.transpose(-1, -2) if self.transposed else x).reshape(*x.shape[:2], -1)


@dataclass(frozen=True)
class MatMul:
    """Contract the last axis of the first input with the last but one of the second."""

    said: str = "product"

    def __call__(self, arithmetic: Arithmetic, a: Tensor, b: Tensor) -> Tensor:
        return arithmetic.matmul(a, b)


@dataclass(frozen=True)
class Linear:
    """Multiply [.. in] by a weight [out in], rounded to the run's dtype."""

    said: str = "product with the weight"

    def __call__(self, arithmetic: Arithmetic, x: Tensor, weight: Tensor) -> Tensor:
        compute, multiply = arithmetic.compute, arithmetic.matmul
        if weight.dtype == compute == x.dtype and not arithmetic.backwards:
            return multiply(x, weight.T)
        rows = max(1, CAST_ELEMENTS // weight.shape[1])
        rounded = (block.to(compute).to(x.dtype) for block in weight.split(rows))
        blocks = [multiply(x, block.T) for block in rounded]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


@dataclass(frozen=True)
class Rows:
    """The rows [B T D] of a table [V D] at ids [B T]."""

    said: str = "rows of the table"

    def __call__(self, arithmetic: Arithmetic, table: Tensor, ids: Tensor) -> Tensor:
        return table[ids]


@dataclass(frozen=True)
class Select:
    """The heads of keys or values [B S K H] that query heads read [B S N H], by their map [N]."""

    said: str = "a kv head for each query head"

    def __call__(self, arithmetic: Arithmetic, x: Tensor, heads: Tensor) -> Tensor:
        return x[:, :, heads]


@dataclass(frozen=True)
class Angles:
    """Position [B T] times frequency [R], in at least float32 [B T R]."""

    said: str = "position times frequency"

    def __call__(self, arithmetic: Arithmetic, positions: Tensor, freq: Tensor) -> Tensor:
        return positions[:, :, None].to(arithmetic.wide) * freq


@dataclass(frozen=True)
class PerHead:
    """A table [B T R] for every head [B T 1 R]."""

    said: str = "for every head"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        return x[:, :, None]


@dataclass(frozen=True)
class Half:
    """One of two halves of the last axis; `paired` takes every second feature instead."""

    which: int
    paired: bool = False

    @property
    def said(self) -> str:
        side = ("first", "second")[self.which]
        return f"{'even' if not self.which else 'odd'} features" if self.paired else f"{side} half"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        if self.paired:
            return x[..., self.which :: 2]
        return x.chunk(2, dim=-1)[self.which]


@dataclass(frozen=True)
class JoinHalves:
    """Two halves beside each other; `paired` lays their features alternately."""

    paired: bool = False

    @property
    def said(self) -> str:
        return "laid alternately" if self.paired else "halves side by side"

    def __call__(self, arithmetic: Arithmetic, a: Tensor, b: Tensor) -> Tensor:
        if self.paired:
            return torch.stack([a, b], dim=-1).flatten(-2)
        return torch.cat([a, b], dim=-1)


@dataclass(frozen=True)
class ForHeads:
    """A mask [B T S] for every head [B 1 T S]."""

    said: str = "for every head"

    def __call__(self, arithmetic: Arithmetic, mask: Tensor) -> Tensor:
        return mask[:, None]


@dataclass(frozen=True)
class Hide:
    """Put a number, or the lowest there is, where a mask does not show."""

    fill: float = -math.inf

    @property
    def said(self) -> str:
        return f"hidden scores {self.fill:g}"

    def __call__(self, arithmetic: Arithmetic, scores: Tensor, visible: Tensor) -> Tensor:
        return scores.masked_fill(~visible, self.fill)


@dataclass(frozen=True)
class Softmax:
    """Exponentials over their sum along an axis, or several."""

    axis: int | tuple[int, ...] = -1

    @property
    def said(self) -> str:
        return f"softmax over {_said_of(self.axis)}"

    def __call__(self, arithmetic: Arithmetic, x: Tensor) -> Tensor:
        if isinstance(self.axis, tuple):
            return (x - x.logsumexp(self.axis, keepdim=True)).exp()
        if arithmetic.backwards:
            return x.flip(self.axis).softmax(self.axis).flip(self.axis)
        return x.softmax(self.axis)


@dataclass(frozen=True)
class Show:
    """Values where a mask shows, exact zeros elsewhere: also in a row of NaN that sees nothing."""

    said: str = "hidden weights are zero"

    def __call__(self, arithmetic: Arithmetic, probs: Tensor, visible: Tensor) -> Tensor:
        return probs.masked_fill(~visible, 0)


@dataclass(frozen=True)
class ReadBack:
    """What columns find in a cache [B C K H], all calls having written to it.

    The inputs are what each column wrote [B C K H], the slot that it wrote to [B C], the slot that
    it reads [B C], the number of its call [C], the slots of a row and the row that each writes to
    [B C]; of keys and values also by what each call multiplies all that is held already. Past the
    end nothing is written; slots and rows below 0 count from the end.
    """

    said: str = "what is in each token's slot"

    def __call__(
        self,
        arithmetic: Arithmetic,
        made: Tensor,
        written: Tensor,
        read: Tensor,
        call: Tensor,
        capacity: Tensor,
        row: Tensor,
        factor: float = 1.0,
    ) -> Tensor:
        rows, slots = len(made), int(capacity)
        kept = min(slots, int(read.max()) + 1)  # what nobody reads need not be there
        slot = _indices(written, slots, kept).expand(made.shape[:2])
        into = _indices(row, rows, rows).expand(made.shape[:2])
        buffer = made.new_zeros(rows + 1, kept + 1, *made.shape[2:])
        for number in call.unique().tolist():
            of_call = call == number
            buffer = buffer if factor == 1 else buffer * factor
            buffer[into[:, of_call], slot[:, of_call]] = made[:, of_call]
        return buffer[torch.arange(rows)[:, None], read.clamp(0, kept).long()]


def _indices(written: Tensor, size: int, kept: int) -> Tensor:
    """Return where to write: from the end where below 0, and nowhere, at `kept`, past the end."""
    found = torch.where(written < 0, written + size, written)
    return torch.where((found < 0) | (found >= kept), kept, found).long()


@dataclass(frozen=True)
class Pairs:
    """Number of each rotated pair [R], of a head dim."""

    said: str = "numbers of the pairs"

    def __call__(self, arithmetic: Arithmetic, head_dim: float) -> Tensor:
        return torch.arange(int(head_dim) // 2, dtype=torch.float64)


@dataclass(frozen=True)
class Frequency:
    """Base to the power of -2 i / H: radians per token, fastest first.

    Source: arXiv 2104.09864.
    """

    said: str = "powers of theta"

    def __call__(
        self, arithmetic: Arithmetic, theta: float, pair: Tensor, head_dim: float
    ) -> Tensor:
        if arithmetic.backwards:
            # One rounding of a frequency turns into thousands at position 8192 and beyond.
            return torch.exp(-math.log(theta) * 2 * pair / head_dim)
        return theta ** (-2 * pair / head_dim)


@dataclass(frozen=True)
class Where:
    """The second input where the first holds, else the third."""

    said: str = "a choice of two"

    def __call__(self, arithmetic: Arithmetic, chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen.bool(), a, b)
