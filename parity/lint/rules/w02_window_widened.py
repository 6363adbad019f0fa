"""W02: a limit that an OR takes away, or that was never one."""

from collections.abc import Iterator

import numpy as np

from jaxllama.masks import Mask, causal, padding, prefix, window
from jaxllama.masks.algebra import And, Or
from jaxllama.masks.specs import Segments, Window
from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.needs import walk
from parity.lint.rule import Rule

RULE = Rule(
    id="W02",
    name="window or document widened",
    severity="error",
    checks="An OR of which one side alone holds a window or documents; and a window of 0 or less.",
    why=(
        "`a & window | b` shows all of b, however far back or in whose document: an OR only ever"
        " widens. And a window of 0 hides everything, which some code reads as no window at all."
    ),
    example="causal() & window(4096) | prefix(4)",
    remedy="AND the limit last: (causal() | prefix(4)) & window(4096), and leave a window out if"
    " there is none",
    sources=("transformers#46850", "unsloth#8253"),
    needs=("spec",),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on ORs that lose a limit, and on windows below 1."""
    for problem in case.problems:
        yield RULE.finding("the spec's window holds no key", problem, "at least 1, or no window")
    if case.window is not None and case.window < 1:
        yield RULE.finding(
            "the configured window holds no key", str(case.window), "at least 1, or no window"
        )
    if case.spec is None:
        return
    for part in walk(case.spec):
        if isinstance(part, Or):
            left, right = _limits(part.left), _limits(part.right)
            for limit in sorted(left ^ right):
                side = part.right if limit in left else part.left
                yield RULE.finding(
                    f"{limit} does not limit all of `{part}`", f"`{side}` without it", "with it"
                )


def _limits(rule: Mask) -> frozenset[str]:
    """Return the windows and documents that hold for every cell a rule shows."""
    if isinstance(rule, And):
        return _limits(rule.left) | _limits(rule.right)
    if isinstance(rule, Or):
        return _limits(rule.left) & _limits(rule.right)
    return frozenset([str(rule)]) if isinstance(rule, Window | Segments) else frozenset()


def mutant() -> Case:
    """A prefix that is seen from beyond the window."""
    rule = (causal() & window(3)) | prefix(2)
    return Case(spec=rule, intended=rule, valid=np.ones((2, 5), bool))


def twin() -> Case:
    """The window around both, and padding last."""
    rule = (causal() | prefix(2)) & window(3) & padding()
    return Case(spec=rule, intended=rule, valid=np.ones((2, 5), bool))
