"""Rope scaling is not the config's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.rope.frequency_tables import (
    configured,
    effective_table,
    of_table,
    ratio,
    rounding,
)
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.evidence import Evidence
from parity.diagnose.solve import scaling_in_words, solve_frequencies
from parity.subjects.torch_reference.frequency_table import frequency_table

CAUSE = Cause(
    id="rope-scaling",
    title="rope scaling is not the config's",
    what=(
        "Slow rotary frequencies are not stretched as rope_scaling asks: not at all, by other "
        "factors, or by another rule."
    ),
    why=(
        "The scaling came with Llama 3.1 and is silently ignored by older readers; its four "
        "numbers have defaults that differ between libraries. Only text past the original "
        "context suffers visibly."
    ),
    sources=("llama.cpp#8676", "mlx-vlm#1710", "levanter#740", "TransformerLens#910"),
    taps=("q_rope", "k_rope", "rope.inv_freq"),
    remedy=(
        "Implement the rope_type of the config with all of its factors, and refuse an unknown one."
    ),
    rank=2,
)

EDITS = (
    *(
        NamedEdits("scaling none", (Pattern("order", name),), "none", "{scaling}", searched=True)
        for name in ("scaled", "stretched")
    ),
    *(
        NamedEdits("{edit}", (pattern,), "{edit}", "{scaling}", searched=True)
        for pattern in (
            Pattern("number", ("factor", "context", "low", "span", "longest", "shortest")),
            *(Pattern("order", name) for name in ("slow", "blended")),
        )
    ),
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose a scaling of the configured theta, or the table itself where its slow pairs err."""
    table = effective_table(e)
    if table is None:
        return
    found = solve_frequencies(table.values, e.config, table.noise)
    asked = scaling_in_words(e.config.rope_scaling)
    if found.exact and found.theta == e.config.rope_theta:
        said = f"scaling {scaling_in_words(found.scaling)}"
        yield configured(e, Hypothesis(CAUSE.id, said, effective=said, configured=asked), found)
    plain = frequency_table(e.config.replace(rope_scaling=None))
    kept = np.isclose(table.values, plain, rtol=1e-6, atol=table.noise)
    if not found.exact and kept[0] and not kept.all() and rounding(e, table.values) is None:
        said = f"{int((~kept).sum())} slow frequencies scaled by {ratio(table.values, plain)}"
        called = Hypothesis(CAUSE.id, said, effective=said, configured=asked)
        yield of_table(called, table.values)
