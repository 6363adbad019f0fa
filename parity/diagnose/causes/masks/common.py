"""Masks that a subject goes by, and the reference that goes by them.

Shapes: B batch, T tokens of the whole scenario; queries before keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import Evidence
from parity.inputs import Inputs

Named = tuple[str, np.ndarray]


def observed(e: Evidence) -> np.ndarray | None:
    """Return which keys the call's real queries see [B T S]: by the mask tap, else by weights."""
    if "mask" in e.setup:
        return np.asarray(e.setup["mask"]) if "mask" in e.flagged else None
    if "attn_probs" not in e.subject:
        return None
    return np.asarray((e.subject["attn_probs"] > 0).any(axis=1))


def matches(e: Evidence, mask: np.ndarray) -> bool:
    """Return whether a mask [B T T] is wrong, and shows what the subject sees in this call."""
    seen = observed(e)
    if seen is None:
        return False
    rows, columns = e.valid, e.columns
    proposed = mask[:, columns, : columns.stop]
    if seen.shape != proposed.shape or np.array_equal(proposed[rows], e.mask[rows]):
        return False
    if e.chunks is not None:  # cells of pad keys mean nothing in a run through a cache
        real = e.inputs.valid[:, None, : columns.stop]
        seen, proposed = seen & real, proposed & real
    return bool(np.array_equal(seen[rows], proposed[rows]))


def seeing(
    e: Evidence, cause: str, wrong_masks: Callable[[Evidence], Iterator[Named]]
) -> Iterator[Hypothesis]:
    """Yield hypotheses whose reference has the masks of some rules, where the subject may.

    Args:
        e: the evidence.
        cause: whose they are.
        wrong_masks: gives masks [B T T] and their words, of a scenario and its calls alone.
    """
    for said, mask in wrong_masks(e):
        if not matches(e, mask):
            continue
        rows = e.inputs.valid
        if e.observed_mask is not None:  # pads that are seen count by what they see
            mask = np.where(rows[:, :, None], mask, e.observed_mask)
        more = int((mask & ~e.inputs.mask)[rows].sum())
        less = int((~mask & e.inputs.mask)[rows].sum())
        yield Hypothesis(
            cause,
            said,
            mask=np.array(mask),
            rule=partial(_elsewhere, e, wrong_masks, said),
            effective=f"{said}: {more} cells more, {less} fewer",
            configured="the scenario's mask",
        )


def _elsewhere(
    e: Evidence,
    wrong_masks: Callable[[Evidence], Iterator[Named]],
    said: str,
    inputs: Inputs,
    chunks: Sequence[int] | None,
) -> Inputs | None:
    """Return another scenario with the mask of a rule; None if it gives none of these words."""
    there = replace(e, inputs=inputs, chunks=chunks, observed_mask=None, observed_positions=None)
    mask = dict(wrong_masks(there)).get(said)
    return None if mask is None else replace(inputs, mask=np.array(mask))
