"""Intervals hold as often as they say, find a real damage, and raise few false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from parity.quality.bootstrap import LEAST_EXAMPLES, interval, resample
from parity.quality.measures import QualityMeasure, perplexity
from parity.quality.verdict import find_changes

TRIALS = 400
# Resamples, of which the command takes 10,000: the tails of 2,000 are as good on average.
FEW = 2000


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def held(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


@pytest.mark.parametrize("n", [LEAST_EXAMPLES, 30])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_intervals_hold_as_often_as_they_say(n: int, draw: str) -> None:
    rng, true, kept = np.random.default_rng(1), {"normal": 0.0, "exponential": 1.0}[draw], 0
    for trial in range(TRIALS):
        values = held(getattr(rng, f"standard_{draw}")(n))
        (scores,) = resample([values], mean, seed=trial, resamples=1000)
        found = interval(scores, n, 0.95)
        kept += found.low <= true <= found.high
    # Three standard deviations of a share of 400 trials are 0.033; the mean of eight exponential
    # numbers is skewed, which no percentile mends.
    least = 0.87 if draw == "exponential" and n == LEAST_EXAMPLES else 0.917
    assert least <= kept / TRIALS <= 0.99


def test_percentiles_as_they_are_hold_too_seldom() -> None:
    rng, kept = np.random.default_rng(1), 0
    for trial in range(TRIALS):
        (scores,) = resample([held(rng.standard_normal(8))], mean, seed=trial, resamples=1000)
        low, high = np.quantile(scores, [0.025, 0.975])
        kept += low <= 0 <= high
    assert kept / TRIALS < 0.917


def test_both_models_are_given_the_same_examples() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(12)
    first, second = resample([held(base), held(base + 3)], mean, seed=5, resamples=50)
    np.testing.assert_allclose(second - first, 3)
    again, other = (resample([held(base)], mean, seed=s, resamples=50)[0] for s in (5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_blocks_draw_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity.quality.bootstrap._BLOCK", 40)
    assert resample([held(np.arange(9.0))], mean, seed=0, resamples=11).shape == (1, 11)


def pair(rng: np.random.Generator, shift: float, n: int = 25) -> QualityMeasure:
    """Return texts of unequal length; the model after has its own noise, and `shift` nats."""
    counts = rng.integers(5, 60, n).astype(np.float64)
    before = rng.normal(3.0, 0.6, n)
    after = before + rng.normal(shift, 0.1, n)
    return perplexity(np.stack([before * counts, after * counts]), counts)


def verdicts(shift: float, pairs: int) -> list[str]:
    rng = np.random.default_rng(7)
    return [find_changes([pair(rng, shift)], seed, FEW)[0].verdict for seed in range(pairs)]


def test_a_damage_is_found_and_so_is_a_gain() -> None:
    assert set(verdicts(0.15, 20)) == {"worse"}
    assert set(verdicts(-0.15, 20)) == {"better"}


def test_null_pairs_raise_few_false_alarms() -> None:
    said = verdicts(0.0, 200)
    alarms = sum(word != "no difference" for word in said)
    # 5 % of 200 are 10, with three standard deviations of 3.
    assert 1 <= alarms <= 19


def test_several_measures_raise_no_more_alarms_than_one() -> None:
    rng, alarms = np.random.default_rng(3), 0
    for seed in range(150):
        found = find_changes([pair(rng, 0.0) for _ in range(6)], seed, FEW)
        alarms += any(one.verdict != "no difference" for one in found)
    assert alarms <= 150 * 0.05 + 3 * np.sqrt(150 * 0.05 * 0.95)


def test_equal_models_do_not_differ() -> None:
    counts = np.arange(3.0, 15.0)
    (found,) = find_changes([perplexity(np.stack([counts * 2, counts * 2]), counts)], 0)
    assert (found.verdict, found.change) == ("no difference", 0.0)
    assert found.interval is not None and (found.interval.low, found.interval.high) == (0, 0)


def test_of_few_examples_nothing_is_said() -> None:
    for n, said in ((LEAST_EXAMPLES - 1, "too few examples"), (LEAST_EXAMPLES, "worse")):
        counts = np.full(n, 9.0)
        (found,) = find_changes([perplexity(np.stack([counts, counts * 2]), counts)], 0)
        assert found.verdict == said
        assert (found.interval is None) == (n < LEAST_EXAMPLES)
