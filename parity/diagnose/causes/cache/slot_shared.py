"""Rows of different length share one cache slot."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.cache.slots import Call, placed
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="cache-slot-shared",
    title="rows of different length share one cache slot",
    what=(
        "All rows write their next token to the same slot, the longest row's: in shorter ones "
        "slots stay empty in between, and are read all the same."
    ),
    why="One scalar counts the cache for the whole batch.",
    sources=("unsloth#3699", "unsloth#4078", "nnsight#673"),
    taps=("keys", "values"),
    remedy="Keep a length per row, and write each row's token at its own.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the longest row's slots, then columns as slots, pads and all."""
    facts: Facts = {"effective": "one counter", "configured": "a length per row"}
    yield placed("cache-slot-shared", "every row goes on where the longest ends", longest, **facts)
    yield placed("cache-slot-shared", "every row is written by columns, pads included", columns)


def longest(call: Call) -> Tensor:
    """Go on after the longest row."""
    return call.own - call.lengths[:, None] + call.lengths.max()


def columns(call: Call) -> Tensor:
    """Count columns of the batch."""
    return torch.arange(call.start, call.start + call.valid.shape[1]).expand(call.valid.shape)
