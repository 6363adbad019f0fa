"""The cache holds fewer bits than the run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.cache.slots import both_or_one
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.rounding import narrow, narrower

CAUSE = Cause(
    id="cache-dtype",
    title="the cache holds fewer bits than the run",
    what="Keys and values are rounded when they are cached, which nobody declared.",
    why=(
        "The cache is made with a default dtype of its own, or keys are not cast to it and the "
        "array silently rounds. Where it is meant, it has to be declared."
    ),
    sources=("tunix#1321",),
    taps=("keys", "values"),
    remedy="Make the cache in the run's dtype, or declare the narrower one.",
    rank=5,
    rounding=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each dtype, for keys and values or for the one at hand."""
    for dtype in narrower(e.lane):
        if dtype == "tf32":  # which is no dtype to store
            continue

        def held(site: MutationSite, dtype: str = dtype) -> Tensor:
            return narrow(site, site.value, dtype)

        for taps in both_or_one(e.short):
            changes = tuple(Mutation(tap, held, rounds=True) for tap in taps)
            facts: Facts = {"effective": dtype, "configured": e.lane}
            said = f"{' and '.join(taps)} cached in {dtype}"
            yield Hypothesis("cache-dtype", said, changes, **facts)
