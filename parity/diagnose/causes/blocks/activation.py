"""Another activation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap
from parity.subjects.torch_reference.operations import UNARY

CAUSE = Cause(
    id="activation",
    title="another activation",
    what="The gate passes through another function than SiLU.",
    why="hidden_act is ignored or its name is read as another function.",
    sources=(),
    taps=("mlp_act",),
    remedy="Use silu(gate) * up.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the usual functions."""
    for name in NAMES:

        def activated(site: MutationSite, name: str = name) -> Tensor:
            return UNARY[name](site.seen["gate_proj"]) * site.seen["up_proj"]

        yield at_tap(e, "activation", name, activated, effective=name, configured="silu")


# Of `UNARY`: those that a model may have for its activation.
NAMES = "gelu", "gelu (tanh)", "quick gelu", "relu", "squared relu", "sigmoid", "tanh", "identity"
