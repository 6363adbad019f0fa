"""M06: saturated masks added to each other."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import LEFT_PADDED, additive, tril

RULE = Rule(
    id="M06",
    name="saturated masks summed or mixed",
    severity="error",
    checks="An additive mask with more than one fill: sums of fills, or -inf beside a finite one.",
    why=(
        "Two masks at the lowest number add up to -inf, so rows that were safe become NaN; and"
        " where fills differ, a row hidden by both kinds gives its weight to the weaker fill: a"
        " key that should be hidden is then the only one seen."
    ),
    example="bias = causal_bias + padding_bias  # both filled with finfo.min",
    remedy="combine as bool and lower once: (causal() & padding()).bind(q, k).to_bias(dtype)",
    sources=("transformers#27114",),
    needs=("array", "additive"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on more than one fill."""
    fills = case.reading.fills
    if len(fills) < 2:
        return
    assert case.mask is not None
    finite = fills[np.isfinite(fills)]
    if len(finite) < len(fills):
        what = "-inf is mixed with a finite fill"
    elif any(np.isclose(f, a + b, rtol=1e-2) for f in finite for a in finite for b in finite):
        what = "fills of several masks are summed"
    else:
        what = "several fills are mixed"
    where = places(
        case.mask.astype(np.float64) == fills[0], ("row", "head", "query", "key")[-case.mask.ndim :]
    )
    yield RULE.finding(what, ", ".join(f"{f:g}" for f in fills), "one fill", where=where)


def mutant() -> Case:
    """A causal and a padding bias, both -1e9, added."""
    mask = additive(tril(), -1e9)[None] + additive(LEFT_PADDED, -1e9)[:, None]
    return Case(mask=mask[:, None], valid=LEFT_PADDED, empty_row="zero")


def twin() -> Case:
    """The same two combined as bool, filled once."""
    mask = additive(tril()[None] & LEFT_PADDED[:, None], -1e9)
    return Case(mask=mask[:, None], valid=LEFT_PADDED, empty_row="zero")
