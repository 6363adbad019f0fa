"""Angle tables: which one a subject goes by, and the reference that goes by it.

Shapes: B batch, T tokens, N heads, H head dim, R = H / 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from jaxllama.config import RopeScaling
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


def effective_table(e: Evidence) -> np.ndarray | None:
    """Return the frequencies [R] that the subject goes by, None if they are right or unknown."""
    right = np.asarray(e.true_setup["rope.inv_freq"], np.float64)
    if "rope.inv_freq" in e.setup:
        shown = np.asarray(e.setup["rope.inv_freq"], np.float64)
        return shown if "rope.inv_freq" in e.flagged and shown.shape == right.shape else None
    turned = rotation(e.subject[ROTATED[e.short]], e.subject[e.short])
    if turned.residual > ROTATION_RESIDUAL or turned.pairing != "half-split":
        return None
    table = frequencies(turned.turn, e.positions, e.valid)
    close = max(1e-12, table_noise(e))
    if not np.isfinite(table).all() or np.allclose(table, right, rtol=1e-6, atol=close):
        return None
    return table


def table_noise(e: Evidence) -> float:
    """Return how far off a frequency may be that was measured on rotations: radians per token."""
    if "rope.inv_freq" in e.setup or e.lane == "f64":
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


def in_words(scaling: RopeScaling | None) -> str:
    """Name a scaling by its numbers: `llama3 8/1/4/8192`."""
    if scaling is None:
        return "none"
    if scaling.kind == "linear":
        return f"linear {scaling.factor:g}"
    return (
        f"llama3 {scaling.factor:g}/{scaling.low_freq_factor:g}/{scaling.high_freq_factor:g}/"
        f"{scaling.original_max_position_embeddings}"
    )


def ratio(table: np.ndarray, plain: np.ndarray) -> str:
    """Name the range of factors between two tables."""
    factors = table / plain
    return f"{factors.min():.3g} to {factors.max():.3g}"


def numbers(table: np.ndarray) -> str:
    """Name the first numbers of a table."""
    return ", ".join(f"{x:.4g}" for x in table[:4]) + (", ..." if len(table) > 4 else "")
