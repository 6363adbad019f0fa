"""A token is written over another one's slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    for said, when in {
        "single tokens": lambda call: call.single,
        "later calls": lambda call: call.later,
    }.items():
        said = f"{said} are written one slot back"
        yield placed("cache-slot-overwritten", said, back(when), **facts)
    for short in range(1, MOST_SHORT + 1):
        last = e.inputs.valid.shape[1] - 1 - short
        yield placed(
            "cache-slot-overwritten",
            f"writes are clamped at slot {last}",
            lambda call, last=last: call.own.clamp(max=last),  # type: ignore[misc]
            effective=f"slot {last}",
            configured="the row's length",
        )


def back(when: Callable[[Call], bool]) -> Callable[[Call], Tensor]:
    """Return slots one before their own, in some calls, of rows that hold tokens already."""

    def place(call: Call) -> Tensor:
        return call.own - (call.lengths > 0).long()[:, None] if when(call) else call.own

    return place
