"""M09: padding that a real query sees."""

from collections.abc import Iterator

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import left_padded, tril

RULE = Rule(
    id="M09",
    name="padding visible",
    severity="error",
    checks="Padding keys that a real query sees.",
    why=(
        "A row's output then depends on how long its neighbours in the batch are. It comes from a"
        " mask built before a last padding step, or from an OR after the padding was taken out."
    ),
    example="seen = (causal & padding) | prefix  # the OR brings padding back",
    remedy="AND the padding last: (causal() | prefix(n)) & padding()",
    sources=("transformers#35855",),
    needs=("seen", "padding", "order"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on visible padding keys."""
    assert case.seen is not None
    padding = (~case.k_valid & case.slots.written)[:, None, None, :]
    wrong = case.seen & padding & case.q_valid[:, None, :, None]
    if wrong.any():
        yield RULE.finding("a padding key is seen", "seen", "hidden", where=places(wrong))


def mutant() -> Case:
    """A left-padded batch under a causal mask alone."""
    return left_padded(mask=tril()[None, None])


def twin() -> Case:
    """The same batch with its padding hidden."""
    return left_padded()
