"""Angle tables: which one a subject goes by, and the reference that goes by it.

Shapes: B batch, T tokens, N heads, H head dim, R = H / 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.diagnose.operators import ROTATED
from parity.diagnose.solve import Frequencies, frequencies, rotation, rounded_through
from parity.subjects.torch_reference.subject import TorchReference

# A subject without a table of its own shows frequencies by its rotations alone. What a rotation
# leaves unexplained beyond this share is no rotation.
ROTATION_RESIDUAL = 1e-6
# Units in the last place by which float32 rounds a rotation, beside those of the angle itself.
MEASURED_UNITS = 8


@dataclass(frozen=True)
class Table:
    """Frequencies that a subject goes by.

    Attributes:
        values: radians per token [R].
        noise: how far off each may be.
    """

    values: np.ndarray
    noise: float


def effective_table(e: Evidence) -> Table | None:
    """Return the frequencies that the subject goes by, None if they are right or unknown.

    Where it shows none, they are those of the scenario in which its rotations tell them best.
    """
    right = np.asarray(e.true_setup["rope.inv_freq"], np.float64)
    if "rope.inv_freq" in e.setup:
        shown = np.asarray(e.setup["rope.inv_freq"], np.float64)
        flagged = "rope.inv_freq" in e.flagged and shown.shape == right.shape
        return Table(shown, 0.0) if flagged else None
    for one in sorted((e, *e.elsewhere), key=_table_noise):
        turned = rotation(one.subject[ROTATED[e.short]], one.subject[e.short])
        if turned.residual > ROTATION_RESIDUAL or turned.pairing != "half-split":
            continue
        table, noise = frequencies(turned.turn, one.positions, one.valid), _table_noise(one)
        if np.isfinite(table).all():
            same = np.allclose(table, right, rtol=1e-6, atol=max(1e-12, noise))
            return None if same else Table(table, noise)
    return None


def _table_noise(e: Evidence) -> float:
    """Return how far off a frequency may be that was measured on rotations: radians per token."""
    if e.lane == "f64":
        return 0.0
    # An angle is a position times at most one radian, rounded before neighbours are subtracted.
    return 2.0**-24 * (MEASURED_UNITS + float(e.positions.max(initial=0)))


def of_table(called: Hypothesis, table: np.ndarray) -> Hypothesis:
    """Return a hypothesis whose reference goes by a table of numbers."""
    held = torch.from_numpy(np.array(table, np.float64))
    return replace(called, changes=(Mutation("rope.inv_freq", lambda site: held),))


def configured(e: Evidence, called: Hypothesis, found: Frequencies) -> Hypothesis:
    """Return a hypothesis whose reference computes its table from theta and scaling."""
    config = e.config.replace(rope_theta=found.theta, rope_scaling=found.scaling)
    table = TorchReference(e.reference.checkpoint, config=config).inv_freq()
    return of_table(called, table.numpy())


def rounding(e: Evidence, table: np.ndarray) -> str | None:
    """Return the 16 bit dtype whose rounding of the right table gives this one, if one does."""
    right = np.asarray(e.true_setup["rope.inv_freq"], np.float64)
    name = rounded_through(right, table)
    return None if name == "float32" else name


def ratio(table: np.ndarray, plain: np.ndarray) -> str:
    """Name the range of factors between two tables."""
    factors = table / plain
    return f"{factors.min():.3g} to {factors.max():.3g}"


def numbers(table: np.ndarray) -> str:
    """Name the first numbers of a table."""
    return ", ".join(f"{x:.4g}" for x in table[:4]) + (", ..." if len(table) > 4 else "")
