"""Rows of the cache are out of order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.cache.slots import Call, both_or_one, found, holding
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import CacheWrites

CAUSE = Cause(
    id="cache-rows",
    title="rows of the cache are out of order",
    what="After a call the cache's rows are permuted: a row goes on with another one's history.",
    why="Rows are reordered, as beam search does, where none asked for it, or by a wrong index.",
    sources=(),
    taps=("keys", "values"),
    remedy="Permute every array of the cache by the same index, and only with the batch.",
    rank=4,
)

# A batch of more rows has too many permutations; it is only turned.
MOST_ROWS = 4


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each order of the rows, after single tokens, later calls or every call."""
    rows = len(e.inputs.tokens)
    turned = [tuple((i + by) % rows for i in range(rows)) for by in range(1, rows)]
    orders = list(permutations(range(rows)))[1:] if rows <= MOST_ROWS else turned
    for taps in both_or_one(e.short):
        for when, happens in WHEN.items():
            for order in orders:

                def what(
                    held: CacheWrites,
                    made: Tensor,
                    order: tuple[int, ...] = order,
                    happens: Happens = happens,
                ) -> Tensor:
                    def after(buffer: Tensor, call: Call) -> Tensor:
                        return buffer[list(order)] if happens(call) else buffer

                    return found(held, made, after=after)

                said = f"rows of {' and '.join(taps)} read as {list(order)} after {when}"
                facts: Facts = {"effective": f"rows {list(order)}", "configured": "rows in order"}
                yield Hypothesis("cache-rows", said, holding(what, taps), **facts)


Happens = Callable[[Call], bool]
WHEN: dict[str, Happens] = {
    "single tokens": lambda call: call.single,
    "later calls": lambda call: call.later,
    "every call": lambda call: True,
}
