"""Rotary angles are held in too few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.rope.frequency_tables import effective_table, of_table, rounding
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.evidence import Evidence
from parity.inputs import Inputs
from parity.subjects.torch.arrays import to_torch

CAUSE = Cause(
    id="rope-precision",
    title="rotary angles are held in too few bits",
    what=(
        "Frequencies, cosines and sines, or positions are rounded to 16 bits before they are used."
    ),
    why=(
        "A model-wide cast reaches buffers as well as weights. bfloat16 holds no odd position "
        "past 256, so distant tokens share angles."
    ),
    sources=("sglang-jax#1473", "gpt-neox#1003", "transformers#29285"),
    taps=("q_rope", "k_rope", "rope.inv_freq"),
    remedy=(
        "Keep frequencies, positions and angles in float32 or wider, whatever the model's dtype."
    ),
    rank=0,
    rounding=True,
)

EDITS = (
    NamedEdits(
        "cos and sin {value.said}",
        (Pattern("rounding", "cos", ("sin",)),),
        "{value.dtype}",
        "the run's dtype",
    ),
    # Of many positions no rounding changes any: the search knows whether it has.
    NamedEdits(
        "positions {value.said}",
        (Pattern("rounding", "positions"),),
        "{value.dtype}",
        "exact",
        searched=True,
    ),
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose a 16 bit table, then 16 bit positions."""
    found = effective_table(e)
    table = None if found is None else found.values
    if table is None and not e.flagged and "rope.inv_freq" in e.setup:
        # To a 16 bit run a table of 16 bits is within rounding; its angles far along are not.
        table = np.asarray(e.setup["rope.inv_freq"], np.float64)
    name = None if table is None else rounding(e, table)
    if table is not None and name is not None:
        said = f"inv_freq in {name}"
        yield of_table(Hypothesis(CAUSE.id, said, effective=name, configured=e.lane), table)
    if e.flagged:
        return
    for name, dtype in DTYPES.items():
        near = _rounded_positions(dtype, e.inputs, None).positions
        if not np.array_equal(near, e.inputs.positions):
            said = f"positions in {name}"
            yield Hypothesis(
                "rope-precision",
                said,
                effective=name,
                configured="exact",
                positions=near,
                rule=partial(_rounded_positions, dtype),
            )


def _rounded_positions(dtype: torch.dtype, inputs: Inputs, chunks: Sequence[int] | None) -> Inputs:
    near = to_torch(np.array(inputs.positions)).to(dtype).long().numpy()
    return replace(inputs, positions=near.astype(inputs.positions.dtype))


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
