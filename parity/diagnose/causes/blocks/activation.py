"""Another activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

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
    for name, function in FUNCTIONS.items():

        def activated(site: MutationSite, function: Function = function) -> Tensor:
            return function(site.seen["gate_proj"]) * site.seen["up_proj"]

        yield at_tap(e, "activation", name, activated, effective=name, configured="silu")


Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "squared relu": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
