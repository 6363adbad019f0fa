"""Medians, quartiles and ratios of seconds: what a run says in the end.

A ratio X_vs_Y is always the other's figure over ours: above 1 ours is better, and against a floor
it is the share of the floor's speed that is reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxllama.bench.measures import Measure
from jaxllama.bench.variants import FLOOR, OURS, TORCH


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it.

    Attributes:
        median: the middle one.
        low: the first quartile.
        high: the third.
        rounds: of how many.
    """

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles, between neighbours where no value is exactly there.

    >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0, rounds=5)
    """
    low, middle, high = (
        float(x) for x in np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))
    )
    return Spread(middle, low, high, len(values))


def speeds(seconds: Sequence[float], tokens: int) -> Spread:
    """Return tokens a second of runs that took so long."""
    return spread([tokens / one for one in seconds])


def paired(others: Sequence[float], ours: Sequence[float]) -> Spread:
    """Return how many times longer another took, round by round."""
    return spread([other / own for other, own in zip(others, ours, strict=True)])


def fastest(seconds: Mapping[str, Sequence[float]], among: Sequence[str]) -> str | None:
    """Return whose median is least; None where none of them was measured."""
    there = [name for name in among if name in seconds]
    return min(there, key=lambda name: spread(seconds[name]).median, default=None)


def speed_ratios(
    measures: Sequence[Measure], seconds: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, Spread]:
    """Return the ratios of all measures, as `prefill_512_vs_eager` or `decode_b1_bf16_vs_f32`.

    Args:
        measures: in order.
        seconds: of each round, by measure's name and variant; ours in float32, timed in the rounds
            of another dtype, is `f32`.
    """
    found: dict[str, Spread] = {}
    for measure in measures:
        taken = seconds.get(measure.name, {})
        if OURS not in taken:
            continue
        ours = taken[OURS]
        others = {name: taken[name] for name in taken if name not in (OURS, FLOOR)}
        if best := fastest(taken, TORCH):
            others["best_torch"] = taken[best]
        if FLOOR in taken:
            others[FLOOR] = taken[FLOOR]
        for name, theirs in others.items():
            found[f"{measure.name}_vs_{name}"] = paired(theirs, ours)
    return found


def single(other: float, ours: float) -> Spread:
    """Return a ratio of two figures that are measured once."""
    ratio = other / ours
    return Spread(ratio, ratio, ratio, 1)
