"""Single elements of a weight differ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import LINEARS, linear_case, map_weight, true_output

CAUSE = Cause(
    id="weight-element",
    title="single elements of a weight differ",
    what=("A few outputs differ in proportion to one input: an element of the weight is another."),
    why="A file is damaged, or a patch reached the wrong index.",
    sources=(),
    taps=LINEARS,
    remedy="Compare the file's checksum with its source, and load it again.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose one element for each output that differs, if few do."""
    x, y, name = linear_case(e)
    gap = y - true_output(e)
    rows = np.flatnonzero(np.abs(gap).max(0) > 1e-9 * np.abs(y).max())
    if not 0 < len(rows) <= 4:
        return
    found = []
    for row in rows:
        share = (x * gap[:, row : row + 1]).sum(0) / (x * x).sum(0)
        left = np.linalg.norm(gap[:, row : row + 1] - share * x, axis=0)
        column = int(left.argmin())
        found.append((int(row), column, float(share[column])))

    def changed(w: Tensor) -> Tensor:
        w = w.double().clone()
        for row, column, by in found:
            w[row, column] += by
        return w

    at = found[0]
    stored = float(e.reference.weight(name)[at[:2]])
    yield Hypothesis(
        "weight-element",
        f"{name}[{at[0]}, {at[1]}] = {stored + at[2]:.6g}",
        (map_weight(name, changed),),
        effective=f"{stored + at[2]:.6g}",
        configured=f"{stored:.6g}",
    )
