"""Rows of a weight are in another order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import LINEARS, linear_case, map_weight, true_output

CAUSE = Cause(
    id="weight-permuted",
    title="rows of a weight are in another order",
    what="The outputs of a product are the right ones, in another order.",
    why="Heads are regrouped for sharding or fused kernels and not put back.",
    sources=(),
    taps=LINEARS,
    remedy="Undo the permutation on loading.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the order in which the reference's outputs give the subject's."""
    _, y, name = linear_case(e)
    right = true_output(e)
    if y.shape[1] > MOST_ROWS or e.short == "logits":
        return
    order = np.array([int(np.abs(right - column[:, None]).max(0).argmin()) for column in y.T])
    if len(set(order)) < len(order):
        return
    rows = torch.from_numpy(order)
    facts: Facts = {
        "effective": f"rows {', '.join(map(str, order[:4]))}, ...",
        "configured": "0, 1, 2, ...",
    }
    change = map_weight(name, lambda w: w[rows])
    yield Hypothesis("weight-permuted", f"rows of {name} reordered", (change,), **facts)


# Matching every row with every other takes the square of this.
MOST_ROWS = 2048
