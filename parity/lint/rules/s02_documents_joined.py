"""S02: positions say there are documents, the mask does not."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import packed, tril

RULE = Rule(
    id="S02",
    name="positions restart, documents are not apart",
    severity="error",
    checks="Without segments: positions that fall within a row, and pairs visible across the fall.",
    why=(
        "Where positions restart a new document begins. If the mask does not know, its tokens see"
        " the earlier document at positions that overlap their own: two keys for one rotation."
    ),
    example="positions = [0, 1, 2, 0, 1]; seen = np.tri(5, dtype=bool)",
    remedy="give segments and AND with segments(), or count positions through",
    sources=("nanoVLM#204",),
    needs=("seen", "positions", "sequence"),
    consequences=("P01",),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on visible pairs across a restart of positions."""
    assert case.seen is not None
    if case.segments is not None:
        return
    real = case.k_valid & case.slots.written
    positions = case.k_positions
    falls = np.zeros(real.shape, bool)
    falls[:, 1:] = (positions[:, 1:] <= positions[:, :-1]) & real[:, 1:] & real[:, :-1]
    document = falls.cumsum(1)
    queries = case.of_queries(document)
    apart = queries[:, None, :, None] != document[:, None, None, :]
    wrong = case.seen & apart & case.q_valid[:, None, :, None] & real[:, None, None, :]
    if wrong.any():
        yield RULE.finding(
            "positions restart, and a key from before is seen",
            "seen",
            "hidden",
            where=places(wrong),
        )


def mutant() -> Case:
    """Restarting positions under a causal mask alone."""
    return packed(mask=tril()[None, None], segments=None)


def twin() -> Case:
    """Restarting positions with documents apart."""
    return packed()
