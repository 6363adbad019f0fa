"""A square weight is transposed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import map_weight, weight_name

CAUSE = Cause(
    id="weight-transposed",
    title="a square weight is transposed",
    what="A weight [n n] is used as its own transpose.",
    why=(
        "Frameworks store a product's weight as [in, out] or [out, in]; a square one fits "
        "both ways."
    ),
    sources=(),
    taps=("q_proj", "k_proj", "v_proj", "o_proj"),
    remedy="Decide on orientation by the tensor's name and source format, never by its shape.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the transpose, of this tensor and of the module in every layer."""
    name = weight_name(e.short, e.layer, e.config)
    shape = e.reference.weight(name).shape
    if shape[0] == shape[1]:
        facts: Facts = {"effective": "W^T", "configured": "W"}
        yield Hypothesis(
            "weight-transposed", f"{name} transposed", (map_weight(name, torch.t),), **facts
        )
