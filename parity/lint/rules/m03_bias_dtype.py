"""M03: a bias of another dtype than the scores."""

from collections.abc import Iterator

import numpy as np

from jaxllama import dtypes
from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.rule import Rule
from parity.lint.samples import additive, tril

RULE = Rule(
    id="M03",
    name="bias of another dtype than the scores",
    severity="warning",
    checks="An additive mask whose dtype is not that of the scores it is added to.",
    why=(
        "JAX promotes: bfloat16 scores plus a float32 bias are float32 from there on, at twice the"
        " memory, and no longer what was run before. The other way round the scores lose bits."
    ),
    example="scores_bf16 + jnp.where(seen, 0.0, -jnp.inf).astype(jnp.float32)",
    remedy="make the bias in the scores' dtype: mask.to_bias(scores.dtype)",
    sources=("diffuseR#34",),
    needs=("array", "additive", "scores_dtype"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where the dtypes differ."""
    assert case.mask is not None
    assert case.scores_dtype is not None
    scores = dtypes.parse(case.scores_dtype)
    if case.mask.dtype != scores:
        yield RULE.finding(
            "the bias has another dtype than the scores", str(case.mask.dtype), str(scores)
        )


def mutant() -> Case:
    """A float32 bias for bfloat16 scores."""
    return Case(mask=additive(tril(), -np.inf)[None, None], scores_dtype="bf16")


def twin() -> Case:
    """A bfloat16 bias for bfloat16 scores."""
    bias = additive(tril(), -np.inf, dtype=dtypes.parse("bf16"))
    return Case(mask=bias[None, None], scores_dtype="bf16")
