"""A row has another row's padding mask."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-row-exchanged",
    title="a row has another row's padding mask",
    what="Rows of a batch are masked by each other's lengths.",
    why="A batch is sorted or sharded, its mask is not.",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Move tokens and masks together.",
    rank=3,
)

EDITS = seeing("rows", "first-row")
