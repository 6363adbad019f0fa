"""Two weights of a layer are swapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.taps import LAYER_MODULES

CAUSE = Cause(
    id="weight-swapped",
    title="two weights of a layer are swapped",
    what="Two tensors of one shape are used for each other: gate and up, k and v, the two norms.",
    why=(
        "A name table has two lines exchanged, a fused gate-up weight is split in the other "
        "order, Meta's w1 and w3 are taken for each other; shapes prove nothing."
    ),
    sources=("breakdown-minimind#3", "maxtext#4974"),
    taps=(
        "input_layernorm",
        "post_attention_layernorm",
        "k_proj",
        "v_proj",
        "gate_proj",
        "up_proj",
    ),
    remedy=(
        "Correct the name table (gate is w1, up is w3); compare checksums by name after loading."
    ),
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the exchange, in every layer and in this."""
    for a, b in PAIRS:
        if LAYER_MODULES[e.short][0] not in (a, b):
            continue
        for layer in (None, e.layer):
            where = "every layer" if layer is None else f"layer {layer}"
            said = f"{a} and {b} exchanged in {where}"
            facts: Facts = {"effective": b, "configured": a}
            yield Hypothesis("weight-swapped", said, (exchanged(a, b, layer),), **facts)


PAIRS = (
    ("input_layernorm", "post_attention_layernorm"),
    ("self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


def exchanged(a: str, b: str, layer: int | None) -> Mutation:
    """Return a change that reads module `a` for `b` and the reverse, in one layer or in all."""
    other = {a: b, b: a}

    def weight(name: str, read: Callable[[str], Tensor]) -> Tensor | None:
        parts = name.split(".")
        module = ".".join(parts[3:-1])
        if module not in other or (layer is not None and int(parts[2]) != layer):
            return None
        return read(".".join([*parts[:3], other[module], parts[-1]]))

    return Mutation(weight=weight)
