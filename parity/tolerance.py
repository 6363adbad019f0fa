"""How large a difference may be: measured noise, never a number picked by hand.

g is the float64 reference, r an honest implementation at the dtype under test, t the subject.
Every token of every tap is judged on its own: rho = error(t) / max(error(r), c * u), where u is
the unit roundoff. What r needs to be an honest implementation, several of them supply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNIT_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class Limits:
    """What a lane accepts.

    Attributes:
        rho: largest per-token error in units of the noise floor.
        peak: the same for the largest single element of a token.
        floor: smallest noise floor, in units of the dtype's unit roundoff.
        witness: how far, in units of our own reference's noise, another witness may be from the
            float64 gold and still count as agreeing with it.
    """

    rho: float
    peak: float
    floor: float
    witness: float


# float64 decides meaning: a fault there stands 1e3 and more above any rounding, so its limit can
# afford to be wide. CHANGELOG.md says on which runs the others were calibrated.
LIMITS = {
    "f64": Limits(rho=16.0, peak=32.0, floor=16.0, witness=8.0),
    "f32": Limits(rho=2.0, peak=5.0, floor=4.0, witness=8.0),
    "bf16": Limits(rho=3.0, peak=5.0, floor=2.0, witness=8.0),
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
    upper = float(np.quantile(envelope[live], NOISE_QUANTILE)) if live.any() else 0.0
    return np.maximum(envelope, max(upper, minimum))
