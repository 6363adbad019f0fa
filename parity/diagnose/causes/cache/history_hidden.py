"""With a cache, the history is hidden."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="cache-history-hidden",
    title="with a cache, the history is hidden",
    what="Queries see the tokens of their own call alone.",
    why=(
        "A square mask of the call is used, or padded with hidden cells, where it ought to "
        "cover the cache too."
    ),
    sources=("llama#899", "hyprstream#1521", "vmlx-swift#185"),
    taps=("attn_probs",),
    remedy="Make the mask [T, past + T].",
    rank=2,
)

EDITS = seeing("own-call")
