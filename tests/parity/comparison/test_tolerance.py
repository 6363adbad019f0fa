"""Noise floors: the worst of the honest variants, never below the dtype's own roundoff."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from parity.comparison.tolerance import LIMITS, UNIT_ROUNDOFF, noise_floor


def test_unit_roundoffs_are_half_the_spacing_at_one() -> None:
    for name, dtype in (("f64", np.float64), ("f32", np.float32), ("f16", np.float16)):
        assert UNIT_ROUNDOFF[name] == float(np.finfo(dtype).eps) / 2
    assert UNIT_ROUNDOFF["bf16"] == float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps) / 2


def test_without_variants_the_floor_is_the_minimum() -> None:
    live = np.ones((2, 5), bool)
    assert (noise_floor([], live, 3e-7) == 3e-7).all()


def test_the_floor_is_the_worst_variant_and_no_less_than_the_quantile() -> None:
    live = np.ones((1, 200), bool)
    a, b = np.full((1, 200), 1e-6), np.full((1, 200), 2e-6)
    a[0, 7] = 9e-6
    floor = noise_floor([a, b], live, 1e-12)
    assert floor[0, 7] == 9e-6
    assert floor[0, 8] == pytest.approx(2e-6)
    # One lucky token of the variants gives the subject no stricter limit.
    b[0, 3] = a[0, 3] = 0.0
    assert noise_floor([a, b], live, 1e-12)[0, 3] == pytest.approx(2e-6)


def test_pads_do_not_raise_the_floor() -> None:
    errors = np.full((1, 100), 1e-6)
    errors[0, 50:] = 1.0
    live = np.arange(100)[None] < 50
    assert noise_floor([errors], live, 1e-12)[0, 0] == pytest.approx(1e-6)
    assert noise_floor([errors], np.zeros((1, 100), bool), 1e-9)[0, 0] == 1e-6


def test_float64_is_far_from_any_fault_of_meaning() -> None:
    """The widest limit of the lane that decides meaning admits nothing a fault could hide in."""
    limits = LIMITS["f64"]
    assert limits.rho("free") * limits.floor * UNIT_ROUNDOFF["f64"] < 1e-12


@pytest.mark.parametrize("lane", LIMITS)
def test_isolated_operators_are_judged_no_more_mildly_than_runs(lane: str) -> None:
    limits = LIMITS[lane]
    assert limits.rho("isolated") == limits.isolated <= limits.free == limits.rho("decode")
