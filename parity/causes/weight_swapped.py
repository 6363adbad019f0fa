"""Two weights of a layer are swapped."""

from __future__ import annotations

from collections.abc import Iterator

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.exchanging import exchanged
from parity.causes.operators import MODULES

CAUSE = Cause(
    id="weight-swapped",
    title="two weights of a layer are swapped",
    what="Two tensors of one shape are used for each other: the two norms, k and v.",
    why="A name table has two lines exchanged; shapes prove nothing.",
    sources=("maxtext#4974",),
    taps=(
        "input_layernorm",
        "post_attention_layernorm",
        "k_proj",
        "v_proj",
    ),
    remedy="Correct the name table; compare checksums by name after loading.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the exchange, in every layer and in this."""
    for a, b in PAIRS:
        if MODULES[e.short] not in (a, b):
            continue
        for layer in (None, e.layer):
            where = "every layer" if layer is None else f"layer {layer}"
            said = f"{a} and {b} exchanged in {where}"
            facts = {"effective": b, "configured": a}
            yield Hypothesis("weight-swapped", said, (exchanged(a, b, layer),), **facts)


PAIRS = (
    ("input_layernorm", "post_attention_layernorm"),
    ("self_attn.k_proj", "self_attn.v_proj"),
)
