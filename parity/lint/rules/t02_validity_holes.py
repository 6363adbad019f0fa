"""T02: validity that ends late, or has holes."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import left_padded, tril

RULE = Rule(
    id="T02",
    name="validity ends late or has holes",
    severity="warning",
    checks=(
        "Validity that is True on padding ids at a row's edge, and padding between real tokens."
    ),
    why=(
        "The first trains and attends on padding. The second is rare on purpose and common by"
        " accident: lengths or caches that count real tokens from one end then point elsewhere."
    ),
    example="valid = np.ones_like(ids, bool)  # after padding",
    remedy="make validity where the padding is made, from the lengths; say so if a hole is meant",
    needs=("validity", "sequence"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on padding ids that are valid at the edges, and on holes."""
    valid = case.k_valid
    holes = ~valid & np.maximum.accumulate(valid, 1)
    holes &= np.maximum.accumulate(valid[:, ::-1], 1)[:, ::-1]
    if holes.any():
        yield RULE.finding(
            "padding between real tokens", "not valid", "valid", where=places(holes, ("row", "key"))
        )
    if case.ids is None or case.pad_id is None or case.pad_id in case.eos_ids:
        return
    if case.valid is None or case.valid.shape != case.ids.shape:
        return
    pad = case.ids == case.pad_id
    trailing = np.logical_and.accumulate(pad[:, ::-1], 1)[:, ::-1]
    leading = np.logical_and.accumulate(pad, 1)
    wrong = (trailing | leading) & case.valid.astype(bool)
    if wrong.any():
        yield RULE.finding(
            f"padding id {case.pad_id} at a row's edge counts as real",
            "valid",
            "not valid",
            where=places(wrong, ("row", "key")),
        )


def mutant() -> Case:
    """Everything valid, with two padding ids at an end."""
    ids = np.array([[11, 12, 13, 0, 0], [14, 15, 16, 17, 18]])
    return Case(mask=tril()[None, None], ids=ids, pad_id=0, valid=np.ones((2, 5), bool))


def twin() -> Case:
    """Padding ids at the start that are not valid."""
    ids = np.array([[0, 0, 11, 12, 13], [14, 15, 16, 17, 18]])
    return left_padded(ids=ids, pad_id=0)
