"""C01: the newest query does not see up to itself."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, Place
from parity.lint.rule import Rule
from parity.lint.samples import cached

RULE = Rule(
    id="C01",
    name="last query does not end at itself",
    severity="error",
    checks="With a cache: the largest key that a row's last real query sees, against its own slot.",
    why=(
        "One less, and the model never sees the token it was just given; one more, and it sees a"
        " slot that holds an old or no token. The text stays fluent for a while."
    ),
    example="seen = slot < cache_length  # before the new token is counted",
    remedy="count the new tokens first: slots below past + current are visible to the last query",
    sources=("mobius#365", "transformers#37414"),
    needs=("seen", "expected", "cache", "order"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where the last real query's last visible key is not its own, and should be."""
    assert case.seen is not None
    assert case.expected is not None
    seen = np.broadcast_to(case.seen, (case.sizes[0], *case.seen.shape[1:]))
    wrong = []
    for row in range(case.sizes[0]):
        real = np.flatnonzero(case.q_valid[row])
        if not len(real):
            continue
        query = int(real[-1])
        order = case.slots.order[min(row, len(case.slots.order) - 1)]
        own = _last(case.slots.own[min(row, len(case.slots.own) - 1), query], order)
        intended = _last(case.expected[row, 0, query], order)
        actual = _last(seen[row, 0, query], order)
        if intended == own != actual:
            wrong.append((Place(row=row, query=query), actual, own))
    if wrong:
        place, actual, own = wrong[0]
        yield RULE.finding(
            "the last query's largest visible key is not its own",
            "no key" if actual is None else f"key {actual}",
            f"key {own}",
            where=(place, len(wrong)),
        )


def _last(seen: np.ndarray, order: np.ndarray) -> int | None:
    """Return the newest of the slots that are seen."""
    found = np.flatnonzero(seen)
    return int(found[order[found].argmax()]) if len(found) else None


def mutant() -> Case:
    """Slots below the old length alone."""
    case = cached()
    assert case.mask is not None
    return case.replace(mask=case.mask & (np.arange(7) < 3))


def twin() -> Case:
    """Two new tokens after three, in a cache of seven."""
    return cached()
