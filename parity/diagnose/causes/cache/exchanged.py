"""Keys and values are exchanged in the cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite

CAUSE = Cause(
    id="cache-exchanged",
    title="keys and values are exchanged in the cache",
    what="What is cached as keys are the values, and the reverse.",
    why="Both have one shape, and a function takes or returns them in the other order.",
    sources=(),
    taps=("keys",),
    remedy="Name them where they are passed: a class with fields k and v, keyword arguments.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the exchange."""
    changes = Mutation("keys", values), Mutation("values", keys)
    yield Hypothesis("cache-exchanged", "keys and values exchanged in the cache", changes)


def keys(site: MutationSite) -> Tensor:
    """Return the keys that were made."""
    assert site.held is not None and site.layer is not None
    return site.held.written[site.layer][0]


def values(site: MutationSite) -> Tensor:
    """Return the values that were made."""
    assert site.held is not None and site.layer is not None
    return site.held.written[site.layer][1]
