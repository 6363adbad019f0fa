"""The window is not the scenario's."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-window",
    title="the window is not the scenario's",
    what="Tokens see more or fewer keys back than the window has.",
    why=(
        "Windows are counted with or without the token itself; libraries differ by one. Or "
        "the window is ignored."
    ),
    sources=("transformers#39408", "transformers#26792", "Megatron-Bridge#2656"),
    taps=("attn_probs", "mask"),
    remedy="State whether the window includes the token itself: here it does.",
    rank=3,
)

EDITS = seeing("window", "window-position", "window-ignored")
