"""Slots of a cache: where calls write, and what a token's column then finds.

Each row's tokens ought to stand in its slots one after the other, pads left out. Comparisons count
in columns of the inputs: a column shows what is in the slot that its token ought to have.

Shapes: B batch, T new tokens, C columns fed so far, S slots, K kv heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from parity.diagnose.cause import Facts, Hypothesis
from parity.diagnose.mutations import CacheWrites, Mutation, MutationSite


@dataclass(frozen=True)
class Call:
    """One call through a cache.

    Attributes:
        start: columns fed before.
        lengths: tokens that each row holds [B].
        valid: which of the call's columns are tokens [B T].
        slots: how many a row has.
    """

    start: int
    lengths: Tensor
    valid: Tensor
    slots: int

    @property
    def own(self) -> Tensor:
        """The slots that the call's tokens ought to have [B T]."""
        return self.lengths[:, None] + self.valid.cumsum(1) - 1

    @property
    def stop(self) -> int:
        """Columns fed with this call."""
        return self.start + self.valid.shape[1]

    @property
    def later(self) -> bool:
        """Whether it is no prompt's beginning."""
        return self.start > 0

    @property
    def single(self) -> bool:
        """Whether it feeds one token a row."""
        return self.valid.shape[1] == 1


def _own(call: Call) -> Tensor:
    return call.own


def _kept(buffer: Tensor, call: Call) -> Tensor:
    return buffer


def found(
    held: CacheWrites,
    made: Tensor,
    place: Callable[[Call], Tensor] = _own,
    after: Callable[[Tensor, Call], Tensor] = _kept,
) -> Tensor:
    """Return what the columns find [B C K H] after all calls.

    Args:
        held: of the cache.
        made: the keys or values of all columns, in order [B C K H].
        place: slots that a call writes to [B T]; past the end nothing is written.
        after: what becomes of all slots [B S K H] once a call has written.
    """
    B, slots = held.valid.shape
    rows = torch.arange(B)[:, None]
    buffer = made.new_zeros(B, slots + 1, *made.shape[2:])  # the last takes what is dropped
    start = 0
    for size in held.sizes:
        stop = start + size
        call = Call(start, held.valid[:, :start].sum(1), held.valid[:, start:stop], slots)
        at = place(call)
        at = torch.where(call.valid & (at < slots), at, slots).clamp(min=0)
        buffer[rows, at] = made[:, start:stop]
        buffer[:, :slots] = after(buffer[:, :slots].clone(), call)
        start = stop
    return buffer[rows, (held.valid[:, : held.stop].cumsum(1) - 1).clamp(min=0)]


def holding(
    what: Callable[[CacheWrites, Tensor], Tensor], taps: tuple[str, ...]
) -> tuple[Mutation, ...]:
    """Return changes that compute what a cache holds of what it was given."""

    def change(tap: str) -> Mutation:
        def value(site: MutationSite) -> Tensor:
            assert site.held is not None and site.layer is not None
            return what(site.held, site.held.written[site.layer][("keys", "values").index(tap)])

        return Mutation(tap, value)

    return tuple(change(tap) for tap in taps)


def both_or_one(short: str) -> Iterator[tuple[str, ...]]:
    """Yield which of keys and values may be wrong, given the first that is."""
    if short == "keys":
        yield ("keys", "values")
    yield (short,)


def placed(
    cause: str, said: str, place: Callable[[Call], Tensor], **facts: Unpack[Facts]
) -> Hypothesis:
    """Return a hypothesis whose reference writes keys and values to other slots."""
    changes = holding(lambda held, made: found(held, made, place), ("keys", "values"))
    return Hypothesis(cause, said, changes, **facts)
