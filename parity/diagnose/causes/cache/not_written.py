"""Keys or values are not written to the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.cache.slots import Call, both_or_one, found, holding
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import CacheWrites

CAUSE = Cause(
    id="cache-not-written",
    title="keys or values are not written to the cache",
    what=(
        "Slots that count as written hold nothing: the calls' keys, values, or both are lost, or "
        "written only after the call has read the cache."
    ),
    why=(
        "The updated cache is not handed on, in JAX most of all, where an update returns a new "
        "array, and what is read may be the old one; or one of two paths, prompt and single token, "
        "forgets one of two arrays."
    ),
    sources=(),
    taps=("keys", "values"),
    remedy="Return the new cache from every path, and test that what was written is read back.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose keys and values, or one of them, of some calls: for good, or while they are read."""
    for taps in both_or_one(e.short):
        for (when, lost), late in product(WHEN.items(), (False, True)):

            def what(
                held: CacheWrites, made: Tensor, lost: Lost = lost, late: bool = late
            ) -> Tensor:
                def place(call: Call) -> Tensor:
                    kept = late and call.stop < held.stop  # a later call finds them
                    return (
                        torch.full_like(call.own, call.slots)
                        if lost(call) and not kept
                        else call.own
                    )

                return found(held, made, place)

            said = "read before they are written" if late else "not written"
            said = f"{' and '.join(taps)} of {when} {said}"
            yield Hypothesis("cache-not-written", said, holding(what, taps))


Lost = Callable[[Call], bool]
WHEN: dict[str, Lost] = {
    "single tokens": lambda call: call.single,
    "later calls": lambda call: call.later,
    "prompts": lambda call: not call.single,
    "every call": lambda call: True,
}
