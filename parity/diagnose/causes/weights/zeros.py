"""Part of a weight is zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.edits.edit import in_words
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import LINEARS, WEIGHTED, map_weight, weight_name

CAUSE = Cause(
    id="weight-zeros",
    title="part of a weight is zero",
    what="Rows, columns or all of a weight are zero.",
    why="A shard was not read, and the buffer it belongs in kept its initial zeros.",
    sources=(),
    taps=WEIGHTED,
    remedy="Check that every shard is present, and refuse tensors that are filled in part.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose zeros for the outputs that are zero, or for a block of inputs."""
    name = weight_name(e.short, e.layer, e.config)
    outputs = e.real(e.short).reshape(int(e.valid.sum()), -1)
    dead = np.flatnonzero((outputs == 0).all(axis=0))
    axis = 1 if e.short == "embed" else 0
    facts: Facts = {"effective": "zeros", "configured": "as stored"}
    if len(dead):
        said = f"{len(dead)} of {outputs.shape[1]} {'columns' if axis else 'rows'} of {name} zero"
        change = map_weight(name, lambda w: zeroed(w, axis if w.ndim > 1 else 0, dead))
        yield Hypothesis("weight-zeros", said, (change,), **facts)
        return
    if e.short == "embed" and (gone := np.flatnonzero((outputs == 0).all(axis=1))).size:
        ids = np.unique(e.inputs.tokens[:, e.columns][e.valid][gone])
        said = f"row{'s' * (len(ids) > 1)} {in_words(ids.tolist())} of {name} zero"
        change = map_weight(name, lambda w: zeroed(w, 0, ids))
        yield Hypothesis("weight-zeros", said, (change,), **facts)
    if e.short not in LINEARS:
        return
    width = e.reference.weight(name).shape[1]
    for parts in (2, 3, 4, 8):
        for block in np.array_split(np.arange(width), parts):
            said = f"columns {block[0]} to {block[-1]} of {name} zero"
            change = map_weight(name, lambda w, block=block: zeroed(w, 1, block))  # type: ignore[misc]
            yield Hypothesis("weight-zeros", said, (change,), **facts)


def zeroed(w: Tensor, axis: int, which: np.ndarray) -> Tensor:
    """Return a weight with some rows or columns at zero."""
    return w.index_fill(axis, torch.from_numpy(which).long(), 0)
