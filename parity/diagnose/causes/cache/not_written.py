"""Keys or values are not written to the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.cache.slots import Call, both_or_one, found, holding
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import CacheWrites

CAUSE = Cause(
    id="cache-not-written",
    title="keys or values are not written to the cache",
    what="Slots that count as written hold nothing: the calls' keys, values, or both are lost.",
    why=(
        "The updated cache is not handed on, in JAX most of all, where an update returns a new "
        "array; or one of two paths, prompt and single token, forgets one of two arrays."
    ),
    sources=(),
    taps=("keys", "values"),
    remedy="Return the new cache from every path, and test that what was written is read back.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose keys and values, or one of them, of some calls."""
    for taps in both_or_one(e.short):
        for when, lost in WHEN.items():

            def what(held: CacheWrites, made: Tensor, lost: Lost = lost) -> Tensor:
                def place(call: Call) -> Tensor:
                    return torch.full_like(call.own, call.slots) if lost(call) else call.own

                return found(held, made, place)

            said = f"{' and '.join(taps)} of {when} not written"
            yield Hypothesis("cache-not-written", said, holding(what, taps))


Lost = Callable[[Call], bool]
WHEN: dict[str, Lost] = {
    "single tokens": lambda call: call.single,
    "later calls": lambda call: call.later,
    "prompts": lambda call: not call.single,
    "every call": lambda call: True,
}
