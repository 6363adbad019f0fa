"""M07: a future key seen, or the own one not."""

from collections.abc import Iterator

import numpy as np

from jaxllama.errors import argument
from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import tril

RULE = Rule(
    id="M07",
    name="future visible, or own key hidden",
    severity="error",
    checks="Later keys that are seen and own keys that are hidden, against what is intended.",
    why=(
        "A model that sees the next token in training learns to copy it, and its loss looks"
        " excellent; one that does not see its own token predicts from the past alone. Both still"
        " write text."
    ),
    example="seen = np.ones((T, T), bool); seen = np.tri(T, k=-1, dtype=bool)",
    remedy=f"build it with causal(); for a bidirectional model say so with {argument('intended')}",
    sources=("LLMs-from-scratch#1061", "transformers#38080"),
    needs=("seen", "expected", "order"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on visible future and on a missing diagonal, on real tokens."""
    assert case.seen is not None
    assert case.expected is not None
    live = case.q_valid[:, None, :, None] & (case.k_valid & case.slots.written)[:, None, None, :]
    future = case.seen & ~case.expected & live & case.slots.after[:, None]
    if future.any():
        yield RULE.finding("a later key is seen", "seen", "hidden", where=places(future))
    missing = ~case.seen & case.expected & live & case.slots.own[:, None]
    if case.empty_row not in ("zero", "self"):
        missing &= case.seen.any(-1, keepdims=True)  # a row without any key is M05's to report
    if missing.any():
        yield RULE.finding("a query's own key is hidden", "hidden", "seen", where=places(missing))


def mutant() -> Case:
    """No mask at all."""
    return Case(mask=np.ones((1, 1, 5, 5), bool))


def twin() -> Case:
    """A triangle with its diagonal."""
    return Case(mask=tril()[None, None])
