"""P02: chunks counted from the start of the array."""

from collections.abc import Iterator

import numpy as np

from jaxllama.masks import causal, chunked, padding
from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import left_padded

RULE = Rule(
    id="P02",
    name="chunks do not start at the first real token",
    severity="error",
    checks="Chunked attention whose boundaries lie where array indices, not positions, say.",
    why=(
        "In a left-padded row every boundary is then off by the number of pads: the row's output"
        " depends on how long its neighbours are, and prefill and decode disagree."
    ),
    example="seen = (query_index // size) == (key_index // size)  # indices of a padded row",
    remedy="divide positions, which start at the first real token, as chunked(size) does",
    sources=("transformers#40324",),
    needs=("seen", "expected", "chunked", "sequence"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where the mask is the intended one with indices for positions."""
    assert case.seen is not None
    assert case.expected is not None
    assert case.intended_rule is not None
    if case.differs(case.expected) and not case.differs(
        case.lowered(case.intended_rule, by_index=True)
    ):
        wrong = (case.seen != case.expected) & case.q_valid[:, None, :, None]
        where = places(wrong)
        seen = case.seen[tuple(n or 0 for n in (where[0].row, 0, where[0].query, where[0].key))]
        yield RULE.finding(
            "chunks are counted from the start of the array",
            "seen" if seen else "hidden",
            "hidden" if seen else "seen",
            where=where,
        )


_CHUNKS = causal() & padding() & chunked(2)
_ONE_PAD = np.array([[False, True, True, True, True], [True] * 5])


def mutant() -> Case:
    """Chunks of two from index 0, where row 0 starts at index 1."""
    case = left_padded(intended=_CHUNKS, valid=_ONE_PAD)
    return case.replace(mask=case.lowered(_CHUNKS, by_index=True))


def twin() -> Case:
    """Chunks of two from the first real token."""
    case = left_padded(intended=_CHUNKS, valid=_ONE_PAD)
    return case.replace(mask=case.lowered(_CHUNKS))
