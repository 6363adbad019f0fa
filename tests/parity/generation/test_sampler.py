"""parity's own sampler, against distributions worked out by hand."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from parity.generation.sampler import GREEDY, Setting, keep, noise_of_draw, surely_kept

# Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 of tokens 3, 0, 4, 1, 2; the last two are equal.
LOGITS = np.log(np.array([4.0, 1.0, 1.0, 8.0, 2.0]) / 16)
NONE = np.zeros(5, bool)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        (Setting(temperature=1.0), {0, 1, 2, 3, 4}),
        (Setting(temperature=1.0, top_k=2), {3, 0}),
        (Setting(temperature=1.0, top_k=4), {3, 0, 4, 1}),  # of equals the lower id
        (Setting(temperature=1.0, top_k=9), {0, 1, 2, 3, 4}),
        (Setting(temperature=1.0, top_p=0.4), {3}),
        (Setting(temperature=1.0, top_p=0.6), {3, 0}),  # the one that crosses p stays
        (Setting(temperature=1.0, min_p=0.3), {3, 0}),
        (Setting(temperature=1.0, min_p=0.2), {3, 0, 4}),
        # At half the temperature weights are squared: 64/86, 16/86, ...
        (Setting(temperature=0.5, top_p=0.7), {3}),
        (Setting(temperature=0.5, min_p=0.2), {3, 0}),
        # Of what top-k leaves, 2/3 and 1/3.
        (Setting(temperature=1.0, top_k=2, top_p=0.6), {3}),
    ],
)
def test_what_is_kept(setting: Setting, kept: set[int]) -> None:
    found = keep(LOGITS, setting, NONE)
    assert {*np.flatnonzero(np.isfinite(found.logits)).tolist()} == kept


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    seen = np.array([True, True, False])
    found = keep(np.array([3.0, -3.0, 3.0]), Setting(repetition_penalty=1.5), seen)
    assert found.logits.tolist() == [2.0, -4.5, 3.0]
    assert keep(LOGITS, GREEDY, NONE).logits.tolist() == LOGITS.tolist()


@pytest.mark.parametrize(
    ("setting", "edge"),
    [
        (Setting(temperature=1.0), math.inf),
        (Setting(temperature=1.0, top_k=2), math.log(2)),
        (Setting(temperature=1.0, top_k=4), math.inf),  # equals: the id decides, not rounding
        (Setting(temperature=1.0, top_p=0.8), math.log(0.8 / 0.75)),
        (Setting(temperature=1.0, min_p=0.26), math.log(0.26 / 0.25)),
    ],
)
def test_how_near_another_set_is(setting: Setting, edge: float) -> None:
    assert keep(LOGITS, setting, NONE).edge == pytest.approx(edge)


def test_the_noise_is_what_jax_draws_with() -> None:
    for seed, number in ((7, 0), (2**32 - 1, 5)):
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), number)
        drawn = int(jax.random.categorical(key, LOGITS))
        noise = noise_of_draw(seed, number, 5, np.dtype(np.float64))
        assert int(np.argmax(LOGITS + noise)) == drawn


def test_what_noise_may_keep_is_between_two_sets() -> None:
    random = np.random.default_rng(5)
    slack, moved = 0.2, 0
    for case in range(60):
        logits = random.normal(0, 2, 40)
        setting = Setting(
            temperature=1.0,
            top_k=[None, 7, 12][case % 3],
            top_p=[None, 0.6, 0.9][case // 3 % 3],
            min_p=[None, 0.05][case % 2],
        )
        sure, possible = surely_kept(logits, setting, slack)
        assert (possible | ~sure).all()
        for _ in range(20):
            noise = random.uniform(-slack / 2, slack / 2, 40)
            kept = np.isfinite(keep(logits + noise, setting, np.zeros(40, bool)).logits)
            assert (kept | ~sure).all() and (possible | ~kept).all()
            moved += (kept != np.isfinite(keep(logits, setting, np.zeros(40, bool)).logits)).any()
    assert moved > 100  # the noise does cut other sets
    assert possible.sum() < 40
