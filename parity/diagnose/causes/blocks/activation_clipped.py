"""Activations are clipped."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.edits.operations import Clipped

CAUSE = Cause(
    id="activation-clipped",
    title="activations are clipped",
    what="Values beyond a limit are cut off.",
    why="A clamp against overflow of float16, or of a quantiser, is left in.",
    sources=(),
    taps=("mlp_act",),
    remedy="Remove the clamp, or compute in a wider dtype.",
    rank=5,
)

EDITS = (
    NamedEdits(
        "{value.said}", (Pattern("limit", "activation", value=Clipped),), "{value.said}", "no limit"
    ),
)
