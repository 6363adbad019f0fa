"""The residual stream is joined wrongly."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import INPUT, NamedEdits, Pattern

CAUSE = Cause(
    id="residual",
    title="the residual stream is joined wrongly",
    what="What a block adds, or adds to, is not the stream as it was.",
    why="The sum is forgotten, is taken after the norm, or carries a factor.",
    sources=(),
    taps=("post_attention", "output"),
    remedy="x = x + attention(norm(x)); x = x + mlp(norm(x)).",
    rank=4,
)

EDITS = tuple(
    NamedEdits(said, (pattern,), said, "x + f(norm(x))")
    for said, pattern in (
        ("f(norm(x))", Pattern("order", "stream", ("left out", "o_proj"))),
        ("f(norm(x))", Pattern("order", "stream", ("left out", "down_proj"))),
        ("x", Pattern("order", "stream", ("left out", INPUT))),
        ("norm(x) + f(norm(x))", Pattern("operand", "stream", ("0", "input_layernorm"))),
        ("norm(x) + f(norm(x))", Pattern("operand", "stream", ("0", "post_attention_layernorm"))),
        ("{0:g} x + f(norm(x))", Pattern("factor", INPUT, ("*",))),
        ("x + {0:g} f(norm(x))", Pattern("factor", ("o_proj", "down_proj"), ("*",))),
        ("{0:g} (x + f(norm(x)))", Pattern("factor", "stream", ("*",))),
    )
)
