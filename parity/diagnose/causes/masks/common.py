"""Masks that a subject goes by, and the reference that goes by them.

Shapes: B batch, T tokens of the whole scenario; queries before keys.
"""

from __future__ import annotations

import numpy as np

from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import Evidence

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


def seeing(e: Evidence, cause: str, said: str, mask: np.ndarray) -> Hypothesis:
    """Return a hypothesis whose reference has that mask."""
    rows = e.inputs.valid
    if e.observed_mask is not None:  # pads that are seen count by what they see
        mask = np.where(rows[:, :, None], mask, e.observed_mask)
    more = int((mask & ~e.inputs.mask)[rows].sum())
    less = int((~mask & e.inputs.mask)[rows].sum())
    return Hypothesis(
        cause,
        said,
        mask=np.array(mask),
        effective=f"{said}: {more} cells more, {less} fewer",
        configured="the scenario's mask",
    )
