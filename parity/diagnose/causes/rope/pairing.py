"""Rotation pairs neighbouring features."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.edit import ALL_HALVES
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="rope-pairing",
    title="rotation pairs neighbouring features",
    what=(
        "Features 2i and 2i + 1 are rotated against each other, where the weights expect i "
        "and i + H/2 (or the reverse)."
    ),
    why=(
        "Meta's code and the rotary paper pair neighbours; Hugging Face permutes q and k so "
        "that halves pair. Code of one kind meets weights of the other."
    ),
    sources=("llama2.c#286", "nanotron#427", "maxtext#581", "maxtext#1774"),
    taps=("q_rope", "k_rope"),
    remedy=(
        "Rotate halves for weights in Hugging Face's layout; for Meta's, permute q and k or "
        "rotate neighbours. Where the subject does so with rows in that order, declare it: axes "
        'of q_rope and k_rope, q_proj and k_proj in (R2), as in "BTN(R2)".'
    ),
    rank=3,
)

EDITS = (
    NamedEdits(
        "neighbours rotated",
        (Pattern("operation", ALL_HALVES),),
        "pairs (2i, 2i + 1)",
        "pairs (i, i + H/2)",
    ),
)
