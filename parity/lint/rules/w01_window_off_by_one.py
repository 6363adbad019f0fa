"""W01: a window of another width."""

from collections.abc import Iterator

import numpy as np

from jaxllama.masks import causal, window
from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import tril

RULE = Rule(
    id="W01",
    name="window off by one",
    severity="error",
    checks="How many earlier keys, itself included, each real query sees, against min(i + 1, W).",
    why=(
        "Whether the query counts as one of the W differs between libraries. One key more or less"
        " is a small error in every row past the window, in every layer, which adds up."
    ),
    example="seen = (i >= j) & (i - j <= W)  # W + 1 keys",
    remedy="count the query: i - j < W, as window(W) does",
    sources=("transformers#39408", "transformers#26792"),
    needs=("seen", "expected", "window", "order"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where the number of visible past keys is not the window's."""
    assert case.seen is not None
    assert case.expected is not None
    counted = (case.k_valid & case.slots.written)[:, None, None, :] & ~case.slots.after[:, None]
    actual = (case.seen & counted).sum(-1)
    expected = (case.expected & counted).sum(-1)
    wrong = (actual != expected) & case.q_valid[:, None, :]
    if wrong.any():
        where = places(wrong, ("row", "head", "query"))
        row, head, query = np.argwhere(wrong)[0]
        yield RULE.finding(
            "a query sees another number of keys than the window holds",
            f"{actual[min(row, len(actual) - 1), head, query]} keys",
            str(expected[row, 0, query]),
            where=where,
        )


def mutant() -> Case:
    """A window of three that shows four."""
    mask = tril() & ~tril(below=4)
    return Case(mask=mask[None, None], intended=causal() & window(3))


def twin() -> Case:
    """A window of three."""
    mask = tril() & ~tril(below=3)
    return Case(mask=mask[None, None], window=3)
