"""How large a difference may be, in units of measured noise.

g is the float64 reference, r an honest implementation at the dtype under test, t the subject.
Every token of every tap is judged on its own: rho = error(t) / max(error(r), c * u), where u is
the unit roundoff. What r needs to be an honest implementation, several of them supply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

UNIT_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}

# The largest of D errors scatters more than their norm. Of a hundred Gaussian ones it has a mean of
# 2.5 and a spread of 0.4 standard deviations: between two honest runs that is a factor of 1.5 at
# three spreads. `parity selftest --calibrate` prints what clean runs have shown.
PEAK_ALLOWANCE = 1.5

# A product of one term rounds once, a score also by its scale and that by itself: 2.5 units of
# roundoff, in any order and on any machine. Three bfloat16 products in place of one are over 100
# off.
PROBE_LIMIT = 4.0


@dataclass(frozen=True)
class Limits:
    """What a lane accepts.

    Attributes:
        isolated: largest per-token error, in units of the noise floor, of an operator that works
            on the reference's inputs.
        free: the same for values that carry all earlier rounding with them.
        floor: smallest noise floor, in units of the dtype's unit roundoff.
        witness: how far another witness may be from the float64 reference, in units of our own
            reference's noise, and still count as agreeing with it.
    """

    isolated: float
    free: float
    floor: float
    witness: float

    def rho(self, mode: str) -> float:
        """Return the limit on rho in a mode of running."""
        if mode == "probe":
            return PROBE_LIMIT
        return self.isolated if mode == "isolated" else self.free

    def witness_limit(self, mode: str) -> float:
        """Return the limit on a witness's rho in a mode of running.

        A gradient in a score is a difference that nearly cancels, and one honest variant alone is
        there to tell the noise: 28 has been seen.
        """
        return 4 * self.witness if mode == "grad" else self.witness

    def peak(self, mode: str) -> float:
        """Return the limit for the largest single element of a token: single ones scatter more."""
        if mode == "probe":
            return PROBE_LIMIT
        return PEAK_ALLOWANCE * self.rho(mode)


# float64 decides meaning: a fault there stands 1e3 and more above any rounding, so its limit can
# afford to be wide. The others stand about twice (isolated) to seven times (free, whose noise few
# tokens tell) above the largest of many clean runs: `parity selftest --calibrate` repeats them, and
# CHANGELOG.md has its figures.
LIMITS = {
    "f64": Limits(isolated=16.0, free=256.0, floor=16.0, witness=16.0),
    "f32": Limits(isolated=4.0, free=16.0, floor=4.0, witness=16.0),
    "bf16": Limits(isolated=2.0, free=16.0, floor=2.0, witness=16.0),
}

# Tokens differ in luck: one may round to nearly nothing in every honest variant. The floor of a
# token is therefore never below this quantile of its tap's tokens.
NOISE_QUANTILE = 0.99


def noise_floor(errors: Sequence[np.ndarray], live: np.ndarray, minimum: float) -> np.ndarray:
    """Return the noise floor of each token from the errors of honest variants.

    Args:
        errors: relative errors of each variant, one array per variant, all of one shape.
        live: which entries count, same shape.
        minimum: absolute floor (c * u).

    Returns:
        Floor per entry: the variants' maximum, no less than the tap's upper quantile or `minimum`.
    """
    if not errors:
        return np.full(live.shape, minimum)
    envelope = np.max(np.stack(errors), axis=0)
    upper = _quantile(envelope[live]) if live.any() else 0.0
    return np.maximum(envelope, max(upper, minimum))


def _quantile(values: np.ndarray) -> float:
    """Return the smallest value that `NOISE_QUANTILE` of the others do not exceed."""
    rank = math.ceil(NOISE_QUANTILE * (values.size - 1))
    return float(np.partition(values, rank)[rank])


def facts(lanes: Sequence[str]) -> dict[str, Any]:
    """Return what reports say of the tolerance in force at some dtypes."""
    return {
        "rule": "per token: error / max(noise, floor * unit_roundoff) <= rho",
        "source": (
            "limits set on clean runs of tiny and SmolLM2, see CHANGELOG.md; `parity selftest "
            "--calibrate` prints the largest seen on fresh models beside each limit"
        ),
        "noise": (
            f"own reference, eager and reordered (float64: those of float32, scaled by the unit "
            f"roundoffs; isolated: eager, in float64 the floor alone); quantile {NOISE_QUANTILE} "
            f"over tokens; near an alarm, for an isolated operator that sums, no less than what "
            f"honest orders of summation cost (each tap says so in noise_from); products of one "
            f"term: the unit roundoff"
        ),
        "lanes": {
            lane: {**asdict(LIMITS[lane]), "unit_roundoff": UNIT_ROUNDOFF[lane]} for lane in lanes
        },
    }
