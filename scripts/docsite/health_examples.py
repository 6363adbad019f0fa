"""For every rule of health a model that is made to fail in that way; `scripts/docs_findings.py`.

Shapes: B batch, N heads, T queries, S keys, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from unhealthy import Edited, leaking, on_column, one_vector, overflowing, scaled, times

import parity
from parity.health.report import HealthReport

LENGTH, HEADS = 48, 6
QK = ("self_attn.q_proj", "self_attn.k_proj")
OUT = ("self_attn.o_proj", "mlp.down_proj")
HEAD = slice(4 * 16, 5 * 16)  # query head 4


@dataclass(frozen=True)
class HealthExample:
    """One model, and the figure that tells.

    Attributes:
        planted: what was done to it.
        figure: as a metric's page is named.
        check: measures it.
        shows_map: whether the flagged head's map is worth a look.
    """

    planted: str
    figure: str
    check: Callable[[], HealthReport]
    shows_map: bool = False


def _health(checkpoint: Any = "tiny", **options: Any) -> HealthReport:
    return parity.check_health(checkpoint, **{"length": LENGTH, "gradients": False} | options)


def _edited(tap: str, edit: Any) -> Callable[[], HealthReport]:
    return lambda: _health(subject=Edited({tap: edit}))


def _scaled(
    factor: float, *parts: str, gradients: bool = False, **more: Any
) -> Callable[[], HealthReport]:
    return lambda: _health(scaled(factor, *parts, **more), gradients=gradients)


def _balanced() -> HealthReport:
    smaller = scaled(1e-5, "mlp.up_proj", layer=2)
    return _health(scaled(1e5, "mlp.down_proj", layer=2, of=smaller), gradients=True)


def _all_on_first(weights: np.ndarray) -> np.ndarray:
    changed = weights
    for head in range(HEADS):
        changed = on_column(head, 0)(changed)
    return changed


def _twin(weights: np.ndarray) -> np.ndarray:
    changed = weights.copy()
    changed[:, 3] = changed[:, 2]
    return changed


def _massive(states: np.ndarray) -> np.ndarray:
    changed = states.copy()
    changed[:, 0, 7] = 5000.0
    return changed


EXAMPLES = {
    "leakage": HealthExample(
        "query 20 of head 5 in layer 2 sees a later key a little",
        "leakage",
        _edited("layers.2.attn_probs", leaking(5, 20, 41, 0.3)),
        True,
    ),
    "row-sum": HealthExample(
        "attention weights of layer 0 times 0.9",
        "row_sum",
        _edited("layers.0.attn_probs", times(0.9)),
    ),
    "rank-collapse": HealthExample(
        "all tokens given one state after layer 1",
        "residual",
        _edited("layers.1.output", one_vector),
    ),
    "entropy-collapse": HealthExample(
        "query weights of head 4 in layer 1 times 900",
        "entropy",
        _scaled(900, QK[0], layer=1, rows=HEAD),
        True,
    ),
    "single-column": HealthExample(
        "head 3 of layer 1 fixed on key 9",
        "column",
        _edited("layers.1.attn_probs", on_column(3, 9)),
        True,
    ),
    "max-logit": HealthExample(
        "query and key weights of layer 2 times 30", "max_logit", _scaled(30, *QK, layer=2)
    ),
    "residual-exploding": HealthExample(
        "output weights of layer 3 times 10,000", "growth", _scaled(1e4, *OUT, layer=3)
    ),
    "residual-vanishing": HealthExample(
        "output weights of layer 2 times a millionth", "added", _scaled(1e-6, *OUT, layer=2)
    ),
    "gradient-exploding": HealthExample(
        "up_proj of layer 2 times 1e-5, down_proj times 1e5: the same output", "whole", _balanced
    ),
    "gradient-not-finite": HealthExample(
        "weights of layer 4 times 1e38 where what they are multiplied by is 0",
        "value",
        lambda: _health(overflowing(4), gradients=True),
    ),
    "gradient-vanishing": HealthExample(
        "output weights of layer 2 times a millionth",
        "value",
        _scaled(1e-6, *OUT, gradients=True, layer=2),
    ),
    "query-key-starved": HealthExample(
        "query and key weights of layer 2 times 1e-5",
        "query_to_value",
        _scaled(1e-5, *QK, gradients=True, layer=2),
    ),
    "random-weights": HealthExample("nothing: the weights of tiny are random", "entropy", _health),
    "sink": HealthExample(
        "head 3 of layer 1 fixed on the first key",
        "sink",
        _edited("layers.1.attn_probs", on_column(3, 0)),
        True,
    ),
    "massive-activations": HealthExample(
        "feature 7 of the first token set to 5000 after layer 1",
        "ratio",
        _edited("layers.1.output", _massive),
    ),
    "lazy-layer": HealthExample(
        "all heads of layer 1 fixed on the first key",
        "lazy_k",
        _edited("layers.1.attn_probs", _all_on_first),
    ),
    "alike-heads": HealthExample(
        "head 3 of layer 1 given the map of head 2",
        "nearest",
        _edited("layers.1.attn_probs", _twin),
    ),
}


def figure_of(report: HealthReport, rule: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a figure [L, N], or [L, 1] of whole layers, and where a rule has found something."""
    for parts in (
        [one.heads for one in report.layers],
        [one.states for one in report.layers],
        report.gradients or [],
    ):
        if parts and name in vars(parts[0]):
            values = np.stack([np.atleast_1d(getattr(one, name)) for one in parts]).astype(float)
    flagged = np.zeros(values.shape, bool)
    for one in report.findings:
        if one.rule == rule and one.layer is not None:
            of_heads = list(one.heads) if one.heads and values.shape[1] > 1 else slice(None)
            flagged[one.layer, of_heads] = True
    # Findings of the whole model name no place: it is where the figure is beyond the threshold.
    beyond = {"sink": values > 0.3, "massive-activations": values >= 1000}
    return values, beyond.get(rule, flagged)
