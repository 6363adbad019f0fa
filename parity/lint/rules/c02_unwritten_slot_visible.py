"""C02: a slot that nothing was written to is seen."""

from collections.abc import Iterator

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import cached

RULE = Rule(
    id="C02",
    name="unwritten cache slot visible",
    severity="error",
    checks="Slots at and beyond past + current tokens that a real query sees.",
    why=(
        "An empty slot of zeros is not neutral: its score is 0, so it takes weight from real keys,"
        " more the larger the cache. Slots left from an earlier text leak it."
    ),
    example="seen = np.ones((1, 1, 1, capacity), bool)  # decode with a static cache",
    remedy="mark slots valid as they are written, and AND with padding()",
    sources=("transformers#30400",),
    needs=("seen", "slots"),
    consequences=("C01",),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on visible slots that hold no token."""
    assert case.seen is not None
    wrong = case.seen & ~case.slots.written[:, None, None, :] & case.q_valid[:, None, :, None]
    if wrong.any():
        yield RULE.finding(
            f"a slot beside the {int(case.slots.written[0].sum())} written ones is seen",
            "seen",
            "hidden",
            where=places(wrong),
        )


def mutant() -> Case:
    """The last new token sees the whole cache."""
    case = cached()
    assert case.mask is not None
    mask = case.mask.copy()
    mask[..., 1, :] = True
    return case.replace(mask=mask)


def twin() -> Case:
    """Two new tokens after three, in a cache of seven."""
    return cached()
