"""M10: seen cells that add something."""

from collections.abc import Iterator

import numpy as np

from jaxllama.errors import argument
from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.rule import Rule
from parity.lint.samples import additive, tril

RULE = Rule(
    id="M10",
    name="seen cells are not zero",
    severity="warning",
    checks="Visible cells of an additive mask that are not 0, where no bias is declared.",
    why=(
        "An additive mask of 1 and -inf was meant as a keep mask. It happens to do no harm alone,"
        " since a softmax forgets what a whole row shares; multiplied by a mask, or summed with"
        " another one, it does."
    ),
    example="mask = np.where(np.tri(T), 1.0, -np.inf)",
    remedy=f"use 0 for seen cells, or declare the bias with {argument('positional_bias', True)}",
    sources=(),
    needs=("array", "additive"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on visible cells other than 0."""
    others = case.reading.shown[case.reading.shown != 0]
    endless = others[~np.isfinite(others)]
    if len(endless):
        yield RULE.finding(
            "visible cells make the scores NaN or infinite",
            ", ".join(f"{value:g}" for value in endless),
            "0",
            severity="error",
        )
    elif len(others) and not case.positional_bias:
        some = ", ".join(f"{value:g}" for value in others[:3])
        more = ", ..." if len(others) > 3 else ""
        yield RULE.finding("visible cells add to the scores", f"{some}{more}", "0")


def mutant() -> Case:
    """A triangle of 1 and -inf."""
    return Case(mask=additive(tril(), -np.inf, shown=1.0)[None, None])


def twin() -> Case:
    """A declared positional bias: every key back costs a tenth."""
    distance = np.arange(5)[:, None] - np.arange(5)[None, :]
    bias = np.where(tril(), -0.125 * distance, -np.inf).astype(np.float32)
    return Case(mask=bias[None, None], positional_bias=True)
