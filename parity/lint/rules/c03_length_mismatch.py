"""C03: a mask as long as something else than the keys."""

from collections.abc import Iterator

from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.rule import Rule
from parity.lint.samples import cached, tril

RULE = Rule(
    id="C03",
    name="mask and cache differ in length",
    severity="error",
    checks="The mask's key axis against past + current tokens, or the capacity of a static cache.",
    why=(
        "A square mask made for the new tokens alone does not cover the history. Where it"
        " broadcasts (one new token), all of it is seen or hidden as one; where it is cut or padded"
        " to fit, the history is hidden and the model forgets."
    ),
    example="mask = np.tri(T, dtype=bool)  # with a cache of earlier tokens",
    remedy="build it against the cache's own keys: causal().bind(queries, cache.tokens())",
    sources=("llama#899", "transformers#30809"),
    needs=("array", "past"),
    consequences=("M05", "M07", "M08", "M09", "C01", "C02", "C04"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where the last axis is not as long as the keys."""
    assert case.mask is not None
    assert case.past is not None
    if case.slot_positions is not None and case.capacity is None:
        return  # a ring is as long as its slots
    expected = case.capacity or case.past + case.sizes[1]
    actual = case.mask.shape[-1]
    if actual != expected:
        meaning = "the cache's capacity" if case.capacity else f"past {case.past} + {case.sizes[1]}"
        yield RULE.finding(
            "the mask's key axis is not as long as the keys", str(actual), f"{expected} = {meaning}"
        )


def mutant() -> Case:
    """A square mask for two tokens after three."""
    return Case(mask=tril(2)[None, None], past=3)


def twin() -> Case:
    """The full capacity of a static cache."""
    return cached()
