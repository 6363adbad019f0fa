"""What is otherwise than in a baseline: findings that are new or gone, and figures that moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from parity.health.figures import LayerSummary
from parity.health.metrics.gradients import GradientFigures
from parity.health.rule import HealthFinding

# What a figure that is a share, from 0 to 1, must have moved by to be said; what others must have
# been multiplied by, or divided. Heuristic: two texts of one model differ by less.
SHARE_MOVED, TIMES_MOVED = 0.1, 2.0
_SHARES = ("entropy", "peaked", "one_distance", "sink", "column", "nearest")
# Sizes of heads, and below what a multiple says nothing: of row sums, what 16 bits round them by.
_SIZES = {"max_logit": 1.0, "reach": 1.0, "lazy_k": 1.0, "leakage": 1e-6, "row_sum": 5e-3}
_LEAST_ROLLOUT = 1.0


@dataclass(frozen=True)
class HealthChange:
    """A figure that moved.

    Attributes:
        figure: its name.
        layer: where.
        head: query head, or the key head of a key's or value's figure; None for the layer.
        before, after: the baseline's and the model's.
        moved: how far, 1 at what is said at all; larger is more.
    """

    figure: str
    layer: int
    head: int | None
    before: float
    after: float
    moved: float


@dataclass(frozen=True)
class HealthComparison:
    """A model beside a baseline.

    Attributes:
        label: of the baseline.
        new: findings that the baseline does not have.
        gone: findings that it alone has.
        changes: figures that moved, the furthest first.
        loss: of the baseline.
    """

    label: str
    new: list[HealthFinding]
    gone: list[HealthFinding]
    changes: list[HealthChange]
    loss: float


def new_among(
    found: Sequence[HealthFinding], before: Sequence[HealthFinding]
) -> list[HealthFinding]:
    """Return the findings that are not among others, or are there of fewer heads."""
    known: dict[object, set[int]] = {}
    for one in before:
        known.setdefault(_place_of(one), set()).update(one.heads)
    return [
        one
        for one in found
        if _place_of(one) not in known or not known[_place_of(one)].issuperset(one.heads)
    ]


def gone_from(
    found: Sequence[HealthFinding], before: Sequence[HealthFinding]
) -> list[HealthFinding]:
    """Return the earlier findings of which no head is left."""
    left: dict[object, set[int]] = {}
    for one in found:
        left.setdefault(_place_of(one), set()).update(one.heads)
    return [
        one
        for one in before
        if _place_of(one) not in left or (one.heads and left[_place_of(one)].isdisjoint(one.heads))
    ]


def _place_of(finding: HealthFinding) -> tuple[str, int | None, bool]:
    """Return what makes a finding of two models the same one, but for its heads."""
    return finding.rule, finding.layer, bool(finding.heads)


def find_changes(
    layers: Sequence[LayerSummary],
    gradients: Sequence[GradientFigures] | None,
    base_layers: Sequence[LayerSummary],
    base_gradients: Sequence[GradientFigures] | None,
) -> list[HealthChange]:
    """Return the figures that moved from a baseline to a model of one shape, the furthest first."""
    found: list[HealthChange] = []
    for layer, (one, base) in enumerate(zip(layers, base_layers, strict=True)):
        found += _of_heads(layer, one, base)
        if one.states is not None and base.states is not None:
            for name in ("residual", "cosine"):
                found += _share(name, layer, None, *_both(base.states, one.states, name))
            for name in ("added", "growth", "largest", "ratio"):
                found += _times(name, layer, None, *_both(base.states, one.states, name))
            values = zip(base.states.value_residual, one.states.value_residual, strict=False)
            for head, (before, after) in enumerate(values):
                found += _share("value_residual", layer, head, float(before), float(after))
        found += _times("rollout", layer, None, base.rollout, one.rollout, _LEAST_ROLLOUT)
    for layer, (g, b) in enumerate(zip(gradients or (), base_gradients or (), strict=False)):
        for name in ("whole", "query_to_value", "key_to_value"):
            found += _times(f"gradient {name}", layer, None, *_both(b, g, name))
        for name in ("query", "key", "value"):
            pairs = zip(getattr(b, name), getattr(g, name), strict=True)
            for head, (before, after) in enumerate(pairs):
                found += _times(f"gradient {name}", layer, head, float(before), float(after))
    return sorted(found, key=lambda change: -change.moved)


def _of_heads(layer: int, one: LayerSummary, base: LayerSummary) -> Iterator[HealthChange]:
    if one.heads is None or base.heads is None:
        return
    for name in (*_SHARES, *_SIZES):
        before, after = getattr(base.heads, name), getattr(one.heads, name)
        for head, (a, b) in enumerate(zip(before, after, strict=True)):
            if name in _SHARES:
                yield from _share(name, layer, head, float(a), float(b))
            else:
                yield from _times(name, layer, head, float(a), float(b), _SIZES[name])


def _both(base: object, one: object, name: str) -> tuple[float, float]:
    return float(getattr(base, name)), float(getattr(one, name))


def _share(
    name: str, layer: int, head: int | None, before: float, after: float
) -> Iterator[HealthChange]:
    moved = abs(after - before) / SHARE_MOVED
    if moved > 1:
        yield HealthChange(name, layer, head, before, after, moved)


def _times(
    name: str, layer: int, head: int | None, before: float, after: float, floor: float = 0.0
) -> Iterator[HealthChange]:
    small, large = sorted((max(before, floor), max(after, floor)))
    if not large > 0:
        return
    tiny = np.finfo(np.float64).tiny
    moved = float(np.log(large / max(small, tiny)) / np.log(TIMES_MOVED))
    if moved > 1:
        yield HealthChange(name, layer, head, before, after, moved)
