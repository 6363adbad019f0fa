"""M01: a mask of 0 and 1 added to the scores."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.rule import Rule
from parity.lint.samples import additive, tril

RULE = Rule(
    id="M01",
    name="zeros and ones added to the scores",
    severity="error",
    checks="An array of 0/1 numbers, or of bool, that is going to be added to the scores.",
    why=(
        "Adding 1 to a score multiplies its weight by e = 2.7 before the row is normalised. Hidden"
        " keys keep a third of the weight they would have had: nothing is hidden."
    ),
    example="scores = scores + np.tril(np.ones((T, S)))",
    remedy="give it as bool (True = seen), or add where(seen, 0, fill) with jaxllama's to_bias",
    sources=("speculators#691", "pytorch#103963"),
    needs=("array",),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on 0/1 or bool values in additive use."""
    reading = case.reading
    if reading.use == "additive" and reading.kind in ("zero_one", "bool"):
        assert case.mask is not None
        found = ", ".join(f"{value:g}" for value in np.unique(case.mask.astype(np.float64)))
        yield RULE.finding(
            "a 0/1 mask is added to the scores, which hides nothing",
            f"values {found} of {case.mask.dtype}",
            "0 where seen and a large negative number where hidden",
        )


def mutant() -> Case:
    """A float triangle of ones."""
    return Case(mask=tril().astype(np.float32)[None, None])


def twin() -> Case:
    """The same triangle as an additive mask."""
    return Case(mask=additive(tril(), -np.inf)[None, None])
