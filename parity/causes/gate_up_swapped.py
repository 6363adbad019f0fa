"""Gate and up are swapped."""

from __future__ import annotations

from collections.abc import Iterator

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.exchanging import exchanged
from parity.causes.operators import MODULES

CAUSE = Cause(
    id="gate-up-swapped",
    title="gate and up are swapped",
    what=(
        "gate_proj's weight is used for up_proj and the reverse: the activation falls on the "
        "wrong half."
    ),
    why=(
        "Fused gate-up weights are split in the other order; Meta's w1 and w3 are taken for "
        "each other."
    ),
    sources=("breakdown-minimind#3",),
    taps=(
        "gate_proj",
        "up_proj",
    ),
    remedy="gate is w1, up is w3; split a fused weight in the order its source states.",
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
            yield Hypothesis("gate-up-swapped", said, (exchanged(a, b, layer),), **facts)


PAIRS = (("mlp.gate_proj", "mlp.up_proj"),)
