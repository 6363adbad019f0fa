"""A token is written over another one's slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.cache.slots import Call, placed
from parity.diagnose.causes.masks.common import seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="cache-slot-overwritten",
    title="a token is written over another one's slot",
    what="New tokens are written where an earlier one stands, and their own slot stays empty.",
    why=(
        "The counter is advanced after the write that needs it, or the write is clamped at the "
        "end of a cache that is too short: `dynamic_update_slice` moves an index that is out of "
        "range without a word."
    ),
    sources=(),
    taps=("keys", "values", "attn_probs", "mask"),
    remedy="Reserve slots before writing, and refuse a call that does not fit.",
    rank=3,
)

# A cache whose counter is behind takes the new tokens for those one slot back, too.
EDITS = seeing("slots-back")
# How many slots short a cache may be for clamped writes to be recognised.
MOST_SHORT = 4


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose tokens one slot back, then writes clamped before the end."""
    if e.short not in ("keys", "values"):
        return
    facts: Facts = {"effective": "one slot back", "configured": "the row's length"}
    for said, when, held in (
        ("single tokens", _single, False),
        ("later calls", _later, False),
        ("later calls of rows that hold tokens", _later, True),
    ):
        said = f"{said} are written one slot back"
        yield placed("cache-slot-overwritten", said, back(when, held=held), **facts)
    for short in range(1, MOST_SHORT + 1):
        last = e.inputs.valid.shape[1] - 1 - short
        yield placed(
            "cache-slot-overwritten",
            f"writes are clamped at slot {last}",
            lambda call, last=last: call.own.clamp(max=last),  # type: ignore[misc]
            effective=f"slot {last}",
            configured="the row's length",
        )


def _single(call: Call) -> bool:
    return call.single


def _later(call: Call) -> bool:
    return call.later


def back(when: Callable[[Call], bool], *, held: bool) -> Callable[[Call], Tensor]:
    """Return slots one before their own, in some calls.

    Args:
        when: in which.
        held: in rows alone that hold tokens already; where columns are counted, pads come before.
    """

    def place(call: Call) -> Tensor:
        if not when(call):
            return call.own
        before = call.lengths > 0 if held else torch.ones_like(call.lengths)
        return (call.own - before.long()[:, None]).clamp(min=0)

    return place
