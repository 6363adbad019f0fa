"""Rotary positions are not the scenario's."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.rope.positions import in_words, moved, observed
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="position-offset",
    title="rotary positions are not the scenario's",
    what=(
        "Tokens are rotated as if they stood elsewhere: always at 0, not advanced in "
        "decoding, counted from 1, counted over pads, or cut off at a table's end."
    ),
    why=(
        "Decoding keeps its own counter beside the cache's; left pads count as tokens; tables "
        "of cosines end."
    ),
    sources=("mlx-vlm#1983", "tiny-llm#46", "transformers#33095"),
    taps=("q_rope", "k_rope", "positions"),
    remedy=(
        "Pass positions explicitly: cumsum(valid) - 1 in a prompt, the row's own length in "
        "decoding. Of a subject that can only count columns, declare it: "
        'takes=Takes(positions="columns").'
    ),
    rank=6,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the positions that the subject shows, or that its rotation tells."""
    seen = observed(e)
    if seen is not None:
        yield from (moved(e, "position-offset", *words) for words in in_words(e, seen))
