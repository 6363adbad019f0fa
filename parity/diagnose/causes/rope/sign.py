"""Rotation goes backwards."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.subjects.torch_reference.operations import Unary

CAUSE = Cause(
    id="rope-sign",
    title="rotation goes backwards",
    what="Features are rotated by minus the angle.",
    why=(
        "The two signs of a rotation matrix are exchanged. With q and k both backwards the "
        "scores are those of mirrored positions, which weights trained the other way do not "
        "expect."
    ),
    sources=("nanochat, comment on checkpoint compatibility",),
    taps=("q_rope", "k_rope"),
    remedy="Compute (a cos - b sin, b cos + a sin).",
    rank=3,
)

EDITS = (
    NamedEdits(
        "sign -1",
        (Pattern("insertion", "sin", value=Unary("negative")),),
        "angle -f p",
        "angle f p",
    ),
)
