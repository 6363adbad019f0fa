"""M05: a query that sees nothing."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, Place, places
from parity.lint.rule import Rule
from parity.lint.samples import left_padded

RULE = Rule(
    id="M05",
    name="empty row",
    severity="error",
    checks=(
        "Rows of the mask without a visible key: an error on a real query, a warning on padding,"
        " neither where a policy for empty rows is declared."
    ),
    why=(
        "A softmax over nothing is NaN with a -inf fill, and the mean of all values, hidden ones"
        " included, with a finite one. Kernels differ, so the same mask gives other outputs on"
        " another backend, and a NaN in a padding row reaches real tokens in the next layer."
    ),
    example="seen = causal & padding  # left padding: the first rows see only padding",
    remedy='declare what it gets: bind(..., empty_row="zero"), or "self" to let it see itself',
    sources=("pytorch#41508", "pytorch#103749"),
    needs=("seen",),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on empty rows that no policy provides for."""
    assert case.seen is not None
    if case.empty_row in ("zero", "self"):
        return
    empty = ~case.seen.any(-1)
    real = empty & case.q_valid[:, None, :]
    if real.any():
        yield RULE.finding("a real query sees no key", "0 keys", "at least 1", where=_rows(real))
    padding = empty & ~case.q_valid[:, None, :]
    if padding.any() and case.empty_row is None:
        yield RULE.finding(
            "a padding query sees no key and no policy is declared",
            "0 keys",
            "a declared policy",
            where=_rows(padding),
            severity="warning",
        )


def _rows(wrong: np.ndarray) -> tuple[Place, int]:
    return places(wrong, ("row", "head", "query"))


def mutant() -> Case:
    """A left-padded batch whose first real query is denied its own key."""
    case = left_padded(empty_row=None)
    assert case.mask is not None
    mask = case.mask.copy()
    mask[0, :, :, 2] = False
    return case.replace(mask=mask)


def twin() -> Case:
    """Left padding with a declared policy."""
    return left_padded()
