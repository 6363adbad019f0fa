"""Positions that a subject goes by, and the reference that goes by them."""

from __future__ import annotations

import numpy as np

from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.solve import offset_and_stride


def observed(e: Evidence) -> np.ndarray | None:
    """Return the positions [B T] that the subject shows, None if they are right or not shown."""
    seen = e.observed_positions
    if seen is None or np.array_equal(seen[e.inputs.valid], e.inputs.positions[e.inputs.valid]):
        return None
    return np.where(e.inputs.valid, seen, e.inputs.positions)


def moved(e: Evidence, cause: str, said: str) -> Hypothesis:
    """Return a hypothesis whose reference has the subject's positions."""
    seen = observed(e)
    assert seen is not None
    first = tuple(np.argwhere((seen != e.inputs.positions) & e.inputs.valid)[0])
    return Hypothesis(
        cause,
        said,
        positions=seen,
        effective=f"position {seen[first]} at row {first[0]}, token {first[1]}",
        configured=f"{e.inputs.positions[first]}",
    )


def in_words(e: Evidence, seen: np.ndarray) -> str:
    """Say how positions differ: by an offset, a stride, a restart, or otherwise."""
    valid = e.inputs.valid
    got, right = seen[valid], e.inputs.positions[valid]
    wrong = got != right
    if not got[wrong].any():
        return "positions 0"
    offset = np.unique(got[wrong] - right[wrong])
    if len(offset) == 1:
        return f"positions shifted by {offset[0]:+d}"
    if len(np.unique(got[wrong])) == 1:
        return f"positions held at {got[wrong][0]}"
    if np.array_equal(got, right // 2):
        return "positions halved"
    line = offset_and_stride(got, right)
    if line is not None:
        return f"positions {line[0]} + {line[1]:g} times the right ones"
    columns = np.broadcast_to(np.arange(seen.shape[1]), seen.shape)
    if np.array_equal(got, columns[valid]):
        return "positions counted in columns, pads included"
    if e.chunks is not None and np.array_equal(seen[:, e.columns], columns[:, : e.valid.shape[1]]):
        return "positions start anew with each call"
    return "other positions"
