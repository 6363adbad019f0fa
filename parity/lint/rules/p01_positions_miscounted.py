"""P01: positions that do not count the real tokens."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, Place, places
from parity.lint.rule import Rule
from parity.lint.samples import LEFT_PADDED, left_padded

RULE = Rule(
    id="P01",
    name="positions do not count real tokens",
    severity="error",
    checks=(
        "Positions of real tokens against their number among the row's (or the document's) real"
        " tokens, counted from 0 or from the stated first position."
    ),
    why=(
        "With positions counted over the padding, a left-padded row is rotated by as many steps as"
        " it has pads. Rotary attention alone would forgive a shift of the whole row; a cache that"
        " goes on counting from the number of real tokens does not, nor do windows and chunks."
    ),
    example="positions = jnp.arange(T)[None]  # for a left-padded batch",
    remedy="positions = cumsum(valid, axis=1) - 1; anew in each packed document",
    sources=("transformers#33095", "unsloth#4078", "nnsight#673"),
    needs=("positions", "sequence"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where a real token's position is not its number."""
    wrong = (case.k_positions != case.counted_positions) & case.k_valid & case.slots.written
    if wrong.any():
        row, key = np.argwhere(wrong)[0]
        first, count = places(wrong, ("row", "key"))
        yield RULE.finding(
            "a real token's position is not its number among real tokens",
            f"position {case.k_positions[row, key]}",
            str(case.counted_positions[row, key]),
            where=(Place(row=first.row, key=first.key), count),
        )


def mutant() -> Case:
    """Positions counted over the padding."""
    return left_padded(positions=np.tile(np.arange(5), (2, 1)))


def twin() -> Case:
    """Positions counted over real tokens; what stands on pads does not matter."""
    return left_padded(positions=LEFT_PADDED.cumsum(1) - 1)
