"""All figures of one layer from its taps, whatever implementation showed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parity.health.metrics.attention import HeadFigures, Rollout, head_figures
from parity.health.metrics.states import StateFigures, state_figures


@dataclass(frozen=True)
class LayerFigures:
    """Figures of one layer on one row of a batch.

    Attributes:
        heads: of its attention weights; None where they are not shown.
        states: of its token states; None where they are not shown.
        rollout: mean distance of what reached a token through all layers so far, in tokens.
    """

    heads: HeadFigures | None
    states: StateFigures | None
    rollout: float


def layer_figures(
    taps: Mapping[str, np.ndarray],
    row: int,
    visible: np.ndarray,
    valid: np.ndarray,
    rollout: Rollout,
) -> LayerFigures:
    """Measure one layer on one row.

    Args:
        taps: of the layer by short name, `attn_probs` and so on, in canonical layouts.
        row: which row of the batch.
        visible: which keys each query may see [T, S].
        valid: False on pads [T].
        rollout: of the layers before, for this row; this layer is added.
    """
    heads, through = None, float("nan")
    if "attn_probs" in taps:
        weights, scores = taps["attn_probs"][row], taps.get("attn_scores")
        heads = head_figures(weights, visible, None if scores is None else scores[row])
        through = rollout.add(weights, visible)
    states = None
    if "input" in taps and "output" in taps and valid.any():
        values = taps["v_proj"][row][valid] if "v_proj" in taps else None
        states = state_figures(taps["input"][row][valid], taps["output"][row][valid], values)
    return LayerFigures(heads, states, through)
