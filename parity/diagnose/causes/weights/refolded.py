"""A weight's memory order is misread."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import LINEARS, map_weight, weight_name

CAUSE = Cause(
    id="weight-refolded",
    title="a weight's memory order is misread",
    what="The numbers of a weight are read row by row where they lie column by column.",
    why=("A reshape stands in for a transpose, which gives the right shape and the wrong matrix."),
    sources=(),
    taps=LINEARS,
    remedy="Transpose, do not reshape.",
    rank=6,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the other order of reading."""
    name = weight_name(e.short, e.layer, e.config)
    facts: Facts = {"effective": "W^T refolded", "configured": "W"}
    yield Hypothesis("weight-refolded", f"{name} refolded", (map_weight(name, refolded),), **facts)


def refolded(w: Tensor) -> Tensor:
    """Read the transpose into the weight's shape."""
    return w.t().reshape(w.shape)
