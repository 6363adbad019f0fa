"""Tokens held to what parity's own sampler chooses of the reference's logits.

Shapes: n tokens of all rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from parity.generation.sampler import Setting, keep, noise_of_draw, surely_kept

# An honest model's noise may be so many times the spread that honest variants show: one of a few
# runs is not the widest there is.
SPREAD = 3.0
# By how many spreads of a difference of two logits noise may move an edge of a filter.
EDGE = 8.0
# Flips beyond those that noise of `SPREAD` makes one expect, in standard deviations of their count.
DEVIATIONS = 5.0


@dataclass(frozen=True)
class Context:
    """What stands before a token, and what is said to it.

    Attributes:
        logits: of the float64 reference.
        moved: what honest variants move them by, as far as the lane is coarse beside them.
        least: smallest noise of a logit.
        seen: tokens before it.
        seed: of its row.
        number: which of its row's new tokens it is.
    """

    logits: Float[np.ndarray, " V"]
    moved: Sequence[Float[np.ndarray, " V"]]
    least: float
    seen: Sequence[int]
    seed: int
    number: int

    def spread(self) -> float:
        """Return the standard deviation of a difference of two logits: a shift of all is none."""
        return math.sqrt(2) * max([self.least, *(float(np.std(moved)) for moved in self.moved)])

    def noise(self, one: int, other: int) -> float:
        """Return the noise of the difference of two tokens' logits."""
        return max(
            [self.spread(), *(abs(float(moved[one] - moved[other])) for moved in self.moved)]
        )


@dataclass(frozen=True)
class Choice:
    """A token that was written, judged.

    Attributes:
        expected: the reference's.
        lacks: what its score lacks to the best one that is surely kept.
        noise: of that difference.
        flips: how often noise of `SPREAD` makes one expect another token than `expected`.
        undecided: noise may cut another set.
        cut_away: no such set has the token.
    """

    expected: int
    lacks: float
    noise: float
    flips: float
    undecided: bool
    cut_away: bool


def check_choice(token: int, setting: Setting, context: Context, dtype: np.dtype) -> Choice:
    """Hold a token to what the reference says.

    Args:
        token: that was written.
        setting: how it was to be chosen.
        context: what stands before it.
        dtype: of the random numbers that it is drawn with.
    """
    logits, gain = context.logits, setting.gain
    seen = np.zeros(len(logits), bool)
    seen[[*context.seen]] = True
    kept = keep(logits, setting, seen)
    drawn = np.zeros(len(logits))
    if setting.temperature is not None:
        drawn = noise_of_draw(context.seed, context.number, len(logits), dtype)
    expected = int(np.argmax(kept.logits + drawn))
    spread = gain * context.spread()
    undecided = kept.edge <= EDGE * spread
    score, sure = kept.whole + drawn, np.isfinite(kept.logits)
    possible = sure.copy()
    if undecided:
        sure, possible = surely_kept(kept.whole, setting, EDGE * spread)
    cut_away = not possible[token]
    # What another honest set may have is not held against the token.
    best = int(np.argmax(np.where(sure, score, -np.inf))) if sure.any() else token
    lacks = max(0.0, float(score[best] - score[token]))
    possible[expected] = True
    behind = (score[expected] - np.delete(score[possible], possible[:expected].sum())) / spread
    # Beyond, the tail of a Gaussian is below 1e-15.
    flips = sum(math.erfc(x / (SPREAD * math.sqrt(2))) / 2 for x in behind[behind < 8 * SPREAD])
    return Choice(
        expected, lacks, gain * context.noise(best, token), min(1.0, flips), undecided, cut_away
    )


def most_flips(expected: float) -> float:
    """Return how many flips are honest where so many are expected."""
    return expected + DEVIATIONS * math.sqrt(expected)
