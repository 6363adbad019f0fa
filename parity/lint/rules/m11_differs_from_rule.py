"""M11: the mask differs from the stated rule in a way that no other rule names."""

from collections.abc import Iterator

import numpy as np

from jaxllama.masks import causal
from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import tril

RULE = Rule(
    id="M11",
    name="differs from the stated rule",
    severity="error",
    checks=(
        "Every cell of real queries against a rule that is stated; reported where no other"
        " rule has found an error."
    ),
    why=(
        "The other rules know mistakes that people make. A mask can be wrong in a way that nobody"
        " listed, and what was asked for is known."
    ),
    example="mask[0, 0, 4, 1] = False  # of a causal mask",
    remedy="build it from the rule itself, or state the rule that is meant",
    needs=("seen", "expected", "stated", "order"),
    residual=True,
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on any difference that a real query sees."""
    assert case.seen is not None
    assert case.expected is not None
    keys = case.k_valid[:, None, None, :]
    wrong = (case.seen != case.expected) & case.q_valid[:, None, :, None] & keys
    if wrong.any():
        row, head, query, key = np.argwhere(wrong)[0]
        seen = case.seen[min(row, len(case.seen) - 1), head, query, key]
        yield RULE.finding(
            f"the mask is not `{case.intended_rule}`",
            "seen" if seen else "hidden",
            "hidden" if seen else "seen",
            where=places(wrong),
        )


def mutant() -> Case:
    """A triangle with one earlier key hidden."""
    mask = tril()
    mask[4, 1] = False
    return Case(mask=mask[None, None], intended=causal())


def twin() -> Case:
    """The triangle."""
    return Case(mask=tril()[None, None], intended=causal())
