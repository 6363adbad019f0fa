"""C04: the corner of the triangle in the wrong place."""

from collections.abc import Iterator

from jaxllama.masks import Mask, causal
from jaxllama.masks.algebra import And, Not, Or
from jaxllama.masks.specs import Causal
from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import tril

RULE = Rule(
    id="C04",
    name="causal alignment undeclared or top-left",
    severity="error",
    checks=(
        "With as many queries as keys or fewer: a causal flag without a declared alignment, and"
        " masks that are the intended one aligned at the top left."
    ),
    why=(
        "A causal flag means a triangle from the top left corner in some kernels"
        " (jax.nn.dot_product_attention, SDPA) and from the bottom right in others. With one query"
        " and eight keys the first sees key 0 alone: decoding without its history."
    ),
    example="jax.nn.dot_product_attention(q1, k8, v8, is_causal=True)",
    remedy="compare positions, as causal() does, or declare the alignment",
    sources=("pytorch#103082", "flax#5591"),
    needs=("seen", "cache", "order"),
    consequences=("M05", "M07", "C01", "W01"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on an undeclared flag, and on a triangle in the top left corner."""
    _, t, s = case.sizes
    if t == s:
        return
    if case.is_causal and case.align is None:
        yield RULE.finding(
            f"a causal flag with T = {t} and S = {s} does not say where the triangle starts",
            "no alignment",
            "top_left or bottom_right, whichever the kernel means",
        )
    if case.expected is None or case.seen is None or not case.differs(case.expected):
        return
    assert case.intended_rule is not None
    if not case.differs(case.lowered(_aligned(case.intended_rule))):
        hidden = ~case.seen & case.expected & case.q_valid[:, None, :, None]
        yield RULE.finding(
            f"the causal triangle of T = {t} queries and S = {s} keys starts at the top left",
            "hidden",
            "seen",
            where=places(hidden),
        )


def _aligned(rule: Mask) -> Mask:
    """Return the rule with every causal part aligned at the top left."""
    if isinstance(rule, Causal):
        return causal(align="top_left")
    if isinstance(rule, And | Or):
        return type(rule)(_aligned(rule.left), _aligned(rule.right))
    return Not(_aligned(rule.rule)) if isinstance(rule, Not) else rule


def mutant() -> Case:
    """Two new queries after three cached keys, as a top-left triangle shows them."""
    return Case(mask=tril(5)[None, None, :2], past=3)


def twin() -> Case:
    """The same two queries with the triangle at the bottom right, and a declared flag."""
    return Case(mask=tril(2, 5)[None, None], past=3, is_causal=True, align="bottom_right")
