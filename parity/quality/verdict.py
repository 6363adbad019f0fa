"""Whether one model is better than another: said where an interval says so, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxllama.errors import InputError, argument
from parity.quality.bootstrap import (
    CONFIDENCE,
    LEAST_EXAMPLES,
    RESAMPLES,
    Interval,
    interval,
    resample,
)
from parity.quality.measures import NAMES, QualityMeasure

Verdict = Literal["better", "worse", "no difference", "too few examples", "measured"]
# What `fail_on` takes beside the name of a measure.
ANY = ("worse", "different")
_MARGIN = re.compile(r"([A-Za-z0-9]+)(?:\s*>\s*(\d+(?:\.\d+)?)\s*%)?")


@dataclass(frozen=True)
class MeasuredChange:
    """A measure before and after a change; of one model alone, `after` is its own.

    Attributes:
        name, title, lower_is_better, signature: of the measure.
        examples: how many it is of.
        before, after: the figures; `before` is None of one model alone.
        before_interval, after_interval: of each; None of too few examples.
        change: after less before.
        interval: of the change, by which the verdict is given.
        verdict: what may be said.
    """

    name: str
    title: str
    lower_is_better: bool
    signature: str
    examples: int
    before: float | None
    after: float
    before_interval: Interval | None
    after_interval: Interval | None
    change: float | None
    interval: Interval | None
    verdict: Verdict

    def is_worse_by(self, percent: float) -> bool:
        """Return whether all of the interval is worse than `before` by more than a share of it."""
        if self.verdict != "worse" or self.before is None or self.interval is None:
            return False
        least = self.interval.low if self.lower_is_better else -self.interval.high
        return least > percent / 100 * abs(self.before)


def each_confidence(measures: int) -> float:
    """Return how often one interval has to hold for all of them to hold 95 times in 100."""
    return 1 - (1 - CONFIDENCE) / measures


def find_changes(
    measures: Sequence[QualityMeasure], seed: int, resamples: int = RESAMPLES
) -> list[MeasuredChange]:
    """Return the figures of all measures with their intervals and verdicts.

    Args:
        measures: of one model, or of two, the one before first.
        seed: of the resamples; every measure draws the same examples.
        resamples: how many.
    """
    confidence = each_confidence(len(measures))
    return [_changed(one, seed, confidence, resamples) for one in measures]


def _changed(one: QualityMeasure, seed: int, confidence: float, resamples: int) -> MeasuredChange:
    n, pair = len(one.statistics[0]), len(one.statistics) == 2
    values = [float(one.score(held.sum(axis=0)[None])[0]) for held in one.statistics]
    verdict: Verdict = "measured"
    of_each: list[Interval | None] = [None] * len(values)
    of_change = None
    if n < LEAST_EXAMPLES:
        verdict = "too few examples" if pair else "measured"
    else:
        drawn = resample(one.statistics, one.score, seed=seed, resamples=resamples)
        of_each = [interval(scores, n, confidence) for scores in drawn]
        if pair:
            of_change = interval(drawn[1] - drawn[0], n, confidence)
            verdict = _said(of_change, one.lower_is_better)
    return MeasuredChange(
        name=one.name,
        title=one.title,
        lower_is_better=one.lower_is_better,
        signature=one.signature,
        examples=n,
        before=values[0] if pair else None,
        after=values[-1],
        before_interval=of_each[0] if pair else None,
        after_interval=of_each[-1],
        change=values[1] - values[0] if pair else None,
        interval=of_change,
        verdict=verdict,
    )


def _said(found: Interval, lower_is_better: bool) -> Verdict:
    if found.low <= 0 <= found.high or not np.isfinite([found.low, found.high]).all():
        return "no difference"
    return "worse" if (found.low > 0) == lower_is_better else "better"


def overall(changes: Sequence[MeasuredChange]) -> str:
    """Return one word for all measures: `mixed` where some are better and some worse."""
    said = {one.verdict for one in changes}
    if {"better", "worse"} <= said:
        return "mixed"
    order: tuple[Verdict, ...] = ("better", "worse", "no difference", "too few examples")
    return next((word for word in order if word in said), "measured")


def check_fail_on(fail_on: Sequence[str], *, pair: bool, examples: int, prompts: int) -> None:
    """Refuse conditions that nothing could meet.

    Args:
        fail_on: see `fails`.
        pair: whether two models are compared.
        examples: how many the data has.
        prompts: how many of them have one, of which all measures but the perplexity are.

    Raises:
        InputError: an unknown measure, one that is not taken or is of too few examples for a
            verdict, or nothing to compare with.
    """
    known = ", ".join((*ANY, *NAMES))
    for word in fail_on:
        said = argument("fail_on", word)
        name, _ = _parsed(word)
        if name not in (*ANY, *NAMES):
            raise InputError(
                f"{said}: expected one of {known}; a measure may say by how much, as in "
                "'perplexity>1%'"
            )
        if not pair:
            raise InputError(
                f"{said}: one model alone is no worse than another; give {argument('baseline')}, "
                f"{argument('quant')} or {argument('mask')} twice"
            )
        if name in NAMES[1:] and not prompts:
            raise InputError(
                f"{said}: of texts alone there is the perplexity; give prompts with references"
            )
        counted = prompts if name in NAMES[1:] else examples
        if counted < LEAST_EXAMPLES:
            raise InputError(
                f"{said}: {counted} example{'s' * (counted != 1)}, and of fewer than "
                f"{LEAST_EXAMPLES} nothing is said to be worse; give more, or leave it out"
            )


def _parsed(word: str) -> tuple[str, float]:
    found = _MARGIN.fullmatch(word.strip())
    if found is None or (found[2] is not None and found[1] in ANY):
        return "", 0.0
    return found[1], float(found[2] or 0)


def fails(changes: Sequence[MeasuredChange], fail_on: Sequence[str]) -> list[str]:
    """Return which conditions are met.

    Args:
        changes: what was found.
        fail_on: `worse` or `different` of any measure, or the name of one that must not be worse,
            `perplexity>1%` by more than so much of what it was before.
    """
    met = []
    for word in fail_on:
        name, percent = _parsed(word)
        if name == "worse":
            hit = any(one.verdict == "worse" for one in changes)
        elif name == "different":
            hit = any(one.verdict in ("worse", "better") for one in changes)
        else:
            hit = any(one.name == name and one.is_worse_by(percent) for one in changes)
        if hit:
            met.append(word)
    return met
