"""Inputs made to tell explanations apart that a run's own inputs do not.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.inputs import Inputs, visible_keys


def probe_inputs(inputs: Inputs) -> list[Inputs]:
    """Return packed and windowed batches of a scenario's shape, its tokens in another order.

    Rows are padded at either end, documents are of different lengths, and positions start anew in
    each.

    Args:
        inputs: the scenario; three rows or more show most.
    """
    rows, columns = inputs.tokens.shape
    if columns < 8:
        return []
    number = np.arange(rows)[:, None]
    column = np.arange(columns)[None, :]
    pads = 1 + number % 3
    valid = np.where(number % 2 == 0, column >= pads, column < columns - pads)
    segments = (column > columns // 3 + number) * 1 + (column > (3 * columns) // 4 - number) * 1
    tokens = np.where(valid, inputs.tokens[:, ::-1], inputs.tokens[:, :1])
    one = replace(inputs, tokens=np.ascontiguousarray(tokens), valid=valid, notes=(), segments=None)
    packed = replace(
        one,
        name="packed, made to tell apart",
        segments=segments.astype(np.int32),
        positions=_positions(valid, segments),
        mask=visible_keys(valid, segments),
        window=None,
    )
    windowed = replace(
        one,
        name="windowed, made to tell apart",
        positions=_positions(valid, np.zeros_like(segments)),
        mask=visible_keys(valid, None, columns // 3),
        window=columns // 3,
    )
    return [packed, windowed]


def _positions(valid: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Count each token within its document."""
    same = (segments[:, :, None] == segments[:, None, :]) & valid[:, None, :]
    earlier = np.tril(np.ones(same.shape[1:], bool), -1)
    return np.where(valid, (same & earlier).sum(2), 0).astype(np.int32)
