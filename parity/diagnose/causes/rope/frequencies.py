"""Rotary frequencies follow no theta."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.rope.frequency_tables import effective_table, numbers, of_table
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="rope-frequencies",
    title="rotary frequencies follow no theta",
    what=(
        "The angle table has other numbers than any theta and scaling give: reversed, "
        "permuted, or made by another formula."
    ),
    why="A table is built by hand, or its axis is flipped or interleaved on the way.",
    sources=(),
    taps=("q_rope", "k_rope", "rope.inv_freq"),
    remedy="Build the table as theta ** (-2 i / head_dim), fastest pair first, then scale it.",
    rank=8,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the very table that the subject shows."""
    found = effective_table(e)
    if found is None:
        return
    table = found.values
    right = np.asarray(e.true_setup["rope.inv_freq"], np.float64)
    said = "a table of other frequencies"
    if np.allclose(table, right[::-1], rtol=1e-6, atol=0):
        said = "the table in reversed order"
    elif np.allclose(np.sort(table), np.sort(right), rtol=1e-6, atol=0):
        said = "the table in another order"
    facts: Facts = {"effective": numbers(table), "configured": numbers(right)}
    yield of_table(Hypothesis(CAUSE.id, said, **facts), table)
