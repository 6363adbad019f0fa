"""Float32 sums of products in the orders that processors and libraries take.

What a library's own kernel does depends on the machine. Here every addition is written out, term
after term over k and at once over rows and columns, so that the order is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Elements of a result that are summed at a time, 64 KB: they stay in a core's cache while k runs.
_TILE = 1 << 14
_TILE_COLUMNS = 1 << 9

# Which of K terms are added one after another.
Chain = Sequence[int]


@dataclass(frozen=True)
class SummationOrder:
    """An order of summation: terms are added up in chains, and the chains' sums joined.

    Attributes:
        name: in a few words.
        chains: of a number of terms K, the chains in the order in which they are joined.
        join: `serial` adds each to what there is; `pairwise` adds neighbours, and so on upwards.
        kept: what a chain's sum is rounded to. Anything but float32 is unfair.
    """

    name: str
    chains: Callable[[int], Iterable[Chain]]
    join: Literal["serial", "pairwise"] = "serial"
    kept: torch.dtype = torch.float32


def contract(left: Tensor, right: Tensor, order: SummationOrder, *, fused: bool) -> Tensor:
    """Return the sum of left[k] * right[k] over k.

    Args:
        left: [K ..], float32 values.
        right: the same; the rest is broadcast.
        order: of the additions.
        fused: round once a term, product and addition together.
    """
    chain = _fused_chain if fused else _plain_chain
    # Products of float32 factors are exact in float64.
    wide = torch.float64 if fused else torch.float32
    lefts, rights = (x.to(wide).unbind() for x in (left, right))
    sums = (
        chain(lefts, rights, terms).to(order.kept).float() for terms in order.chains(len(lefts))
    )
    return _serially(sums) if order.join == "serial" else _by_pairs(sums)


def product(a: Tensor, b: Tensor, order: SummationOrder, *, fused: bool) -> Tensor:
    """Return a @ b in float32.

    Args:
        a: [.. M K]; bfloat16 is widened, which is exact.
        b: [K N], or [.. K N] with `a`'s leading axes.
        order: of the additions.
        fused: see `contract`.
    """
    if b.dim() == 2:
        return _matrices(a.reshape(-1, a.shape[-1]), b, order, fused).view(*a.shape[:-1], -1)
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True)
    found = torch.stack([_matrices(one, other, order, fused) for one, other in pairs])
    return found.view(*a.shape[:-1], b.shape[-1])


def _matrices(a: Tensor, b: Tensor, order: SummationOrder, fused: bool) -> Tensor:
    """Multiply [M K] by [K N], a tile of the result at a time."""
    result = torch.empty(a.shape[0], b.shape[1])
    columns = min(b.shape[1], _TILE_COLUMNS)
    rows = max(1, _TILE // columns)
    left = a.T.to(torch.float64 if fused else torch.float32)[:, :, None]  # once for all tiles
    for across in range(0, b.shape[1], columns):
        right = b[:, across : across + columns].to(left.dtype).contiguous()[:, None, :]
        for down in range(0, a.shape[0], rows):
            here = left[:, down : down + rows].contiguous()
            tile = contract(here, right, order, fused=fused)
            result[down : down + rows, across : across + columns] = tile
    return result


def _plain_chain(left: Sequence[Tensor], right: Sequence[Tensor], terms: Chain) -> Tensor:
    """Add products that have been rounded."""
    total = left[terms[0]] * right[terms[0]]
    term = torch.empty_like(total)
    for k in terms[1:]:
        torch.mul(left[k], right[k], out=term)
        total += term
    return total


def _fused_chain(left: Sequence[Tensor], right: Sequence[Tensor], terms: Chain) -> Tensor:
    """Add exact products, rounding each sum to float32.

    The sum is one of float64 first. Where that is halfway between float32's, the last bit may be
    another than a processor's: still as honest a rounding.
    """
    wide = left[terms[0]] * right[terms[0]]
    total = wide.float()
    wide.copy_(total)
    for k in terms[1:]:
        wide.addcmul_(left[k], right[k])
        total.copy_(wide)
        wide.copy_(total)
    return total


def _serially(sums: Iterator[Tensor]) -> Tensor:
    total = next(sums)
    for one in sums:
        total = total + one
    return total


def _by_pairs(sums: Iterator[Tensor]) -> Tensor:
    """Add like a tournament; what is held meanwhile grows with the logarithm of the number."""
    held: list[tuple[int, Tensor]] = []  # with how many rounds each has been through
    for one in sums:
        rounds = 0
        while held and held[-1][0] == rounds:
            one = held.pop()[1] + one
            rounds += 1
        held.append((rounds, one))
    total = held.pop()[1]
    while held:
        total = held.pop()[1] + total
    return total


def _cut(K: int, size: int) -> list[Chain]:
    return [range(start, min(start + size, K)) for start in range(0, K, size)]


def blocks(size: int, *, kept: torch.dtype = torch.float32) -> SummationOrder:
    """Return the order of a kernel that sums `size` terms in registers, then adds to memory."""
    return SummationOrder(f"in blocks of {size}", lambda K: _cut(K, size), kept=kept)


def _parts(K: int, count: int) -> list[Chain]:
    return _cut(K, -(-K // count))


def _arriving(K: int) -> list[Chain]:
    """Four parts in the order in which some GPU's blocks might end."""
    parts = _parts(K, 4)
    return [parts[i] for i in (2, 0, 3, 1) if i < len(parts)]


SERIAL = SummationOrder("serially", lambda K: [range(K)])
REVERSED = SummationOrder("reversed", lambda K: [range(K - 1, -1, -1)])
IN_LANES = SummationOrder(
    "in 8 lanes", lambda K: [range(i, K, 8) for i in range(min(8, K))], "pairwise"
)
PAIRWISE = SummationOrder("pairwise", lambda K: _cut(K, 2), "pairwise")
HALVES = SummationOrder("in two threads' halves", lambda K: _parts(K, 2))
SPLIT = SummationOrder("in split-K's parts", _arriving)
ORDERS = (SERIAL, REVERSED, blocks(4), blocks(16), blocks(64), IN_LANES, PAIRWISE, HALVES, SPLIT)
