"""The MLP runs beside attention."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="parallel-block",
    title="the MLP runs beside attention",
    what="The second norm reads the block's input, not the stream after attention.",
    why="GPT-J's and PaLM's parallel blocks are taken over.",
    sources=(),
    taps=("post_attention_layernorm",),
    remedy="Run attention, then the MLP on its result.",
    rank=4,
)

EDITS = (
    NamedEdits(
        "MLP of the block's input",
        (Pattern("operand", "wide", ("0", "input")),),
        "norm(input)",
        "norm(post_attention)",
    ),
)
