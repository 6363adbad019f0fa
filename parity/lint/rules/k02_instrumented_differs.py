"""K02: what the instrumented path shows is not what the production path does."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxllama import dtypes
from parity.lint.attentions import resolve
from parity.lint.findings import Finding, places
from parity.lint.probe_cases import ProbeCase, Probed, cases
from parity.lint.probes import identity_probe, run
from parity.lint.rule import CannotCheck, Rule

RULE = Rule(
    id="K02",
    name="instrumented path differs from production",
    severity="warning",
    checks=(
        "The weights and outputs that an attention shows to its taps, against those that the path"
        " without taps gives, within the rounding of its dtype."
    ),
    why="Maps are then looked at, and found right, of something that is not what runs.",
    example="attend(q, k, v, mask, output_attentions=True)  # falls back to another kernel",
    remedy="compare both paths by this probe wherever the attention maps are used as evidence",
    sources=(),
    kind="dynamic",
)


def check(probed: Probed) -> Iterator[Finding]:
    """Fire on the first case where shown and real weights or outputs differ beyond rounding."""
    if probed.instrumented is None:
        raise CannotCheck("it shows no weights to compare")
    dtype = dtypes.parse(probed.dtype)
    for case in cases():
        q, k, v = (jax.device_put(a.astype(dtype)) for a in (case.q, case.k, case.v))
        shown = probed.instrumented(q, k, v, jax.device_put(case.mask))
        out, weights = (np.asarray(a).astype(np.float64) for a in shown)
        largest = float(abs(case.v).max())
        real = run(probed, case.q, case.k, case.v, case.mask)
        pairs = (
            ("weights", weights, identity_probe(probed, case), 1.0, _BNTS),
            ("outputs", out, real, largest, _BTNH),
        )
        found = [_compare(case, dtype, *pair) for pair in pairs]
        if any(found):
            yield from (finding for finding in found if finding)
            return


def _compare(
    case: ProbeCase,
    dtype: np.dtype,
    what: str,
    shown: np.ndarray,
    real: np.ndarray,
    scale: float,
    axes: tuple[str, ...],
) -> Finding | None:
    limit = _rounding(case, dtype) * scale
    wrong = ~(abs(shown - real) <= limit)  # NaN is wrong, too
    if not wrong.any():
        return None
    first = tuple(np.argwhere(wrong)[0])
    where = places(np.asarray(wrong if what == "weights" else wrong.any(-1)), axes)
    return RULE.finding(
        f"on `{case.name}` the {what} shown are not those used",
        f"{shown[first]:.3g}",
        f"{real[first]:.3g} within {limit:.2g}",
        where=where,
    )


_BNTS = ("row", "head", "query", "key")
_BTNH = ("row", "query", "head")


def _rounding(case: ProbeCase, dtype: np.dtype) -> float:
    """Return how far two honest evaluations of a weighted mean of values up to 1 may be apart.

    A score, a sum of H products, is wrong by d at most; that moves a weighted mean by 2 d, and the
    sum of S products and the weights' own rounding add S + 4 units. Both evaluations may err.
    """
    unit = float(ml_dtypes.finfo(dtype).eps) / 2
    h, s = case.q.shape[-1], case.k.shape[1]
    largest = h * float(abs(case.q).max() * abs(case.k).max()) * h**-0.5
    return 2 * (2 * (h + 2) * unit * largest + (s + 4) * unit)


def mutant() -> Probed:
    """Taps that show the weights before the mask."""
    real = resolve("xla")

    def unmasked(q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any]:
        assert real.instrumented is not None
        out, _ = real.instrumented(q, k, v, mask)
        return out, real.instrumented(q, k, v, jnp.ones_like(mask))[1]

    return Probed("shows too much", real.call, instrumented=unmasked)


def twin() -> Probed:
    """The reference backend, whose taps are its own arrays."""
    return resolve("xla")
