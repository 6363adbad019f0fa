"""M04: a fill that does not hide, or that its dtype cannot hold."""

import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from jaxllama import dtypes
from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.rule import Rule
from parity.lint.samples import additive, tril

# exp(x) is 0 in float32 below this: ln of its smallest subnormal, 1.4e-45.
_EXP_IS_ZERO = -104.0

RULE = Rule(
    id="M04",
    name="fill too weak, or too large for its dtype",
    severity="error",
    checks=(
        "Fills that leave a hidden key some weight when scores reach the stated limit (100 unless"
        " given), and finite fills that become -inf in the scores' dtype."
    ),
    why=(
        "A hidden score of +L plus the fill must lie so far below a seen score of -L that its"
        " exponential is 0: the fill must be under -(2 L + 104). And -1e9 is -inf in float16, as"
        " float32's lowest number is in bfloat16: an empty row is then NaN."
    ),
    example="scores.masked_fill(~seen, -100.0); bias = (1 - seen) * -1e9  # in float16",
    remedy="fill with half the lowest number of the scores' dtype, as mask.to_bias does",
    sources=("gluonts#1401", "transformers#17306", "TransformerLens#319"),
    needs=("array", "additive"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on weak fills and on fills that overflow."""
    needed = _EXP_IS_ZERO - 2 * case.score_limit
    weak = [fill for fill in case.reading.fills if fill > needed]
    if weak:
        leak = math.exp(min(weak[-1] + 2 * case.score_limit, 0.0))
        yield RULE.finding(
            "the fill is too weak: a hidden key can keep weight",
            f"{weak[-1]:g} (up to {leak:.3g} of a seen key's weight at scores of"
            f" {case.score_limit:g})",
            f"at most {needed:g}",
        )
    if case.scores_dtype is None:
        return
    dtype = dtypes.parse(case.scores_dtype)
    with np.errstate(over="ignore"):
        over = [f for f in case.reading.fills if np.isfinite(f) and not _finite(f, dtype)]
    if over:
        yield RULE.finding(
            f"the fill becomes -inf in {dtype}",
            f"{over[0]:g}",
            f"not below {float(ml_dtypes.finfo(dtype).min):g}",
        )


def _finite(fill: float, dtype: np.dtype) -> bool:
    return bool(np.isfinite(np.asarray(fill).astype(dtype).astype(np.float64)))


def mutant() -> Case:
    """A fill of -100, with scores of 100 about."""
    return Case(mask=additive(tril(), -100.0)[None, None])


def twin() -> Case:
    """Half of float16's lowest number, for float16 scores."""
    bias = additive(tril(), -32752.0, dtype=np.float16)
    return Case(mask=bias[None, None], scores_dtype="f16")
