"""The envelope: above what real orders of summation err by, on terms of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from parity.noise.envelope import error_bound, sum_variance, walk_variance
from parity.noise.orders import TRIALS

K, ROWS, OUTPUTS = 1536, 3, 40


def _terms(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return factors [1 R K] and [1 O K] in float32 whose products hang together in some way."""
    rng = np.random.default_rng(5)
    a = rng.normal(size=(1, ROWS, K))
    b = rng.normal(size=(1, OUTPUTS, K))
    if kind == "massive":
        a[..., 300] *= 1000
    elif kind == "positive, then negative":
        a, b = abs(a), abs(b) * np.where(np.arange(K) < K // 2, 1, -1)
    elif kind == "smooth, with an offset":
        a = 2 + np.sin(np.arange(K) / 300 + rng.normal(size=(1, ROWS, 1)))
        b = np.cos(np.arange(K) / 200 + rng.normal(size=(1, OUTPUTS, 1)))
    elif kind == "alternating":
        a, b = abs(a), abs(b) * (-1.0) ** np.arange(K)
    return a.astype(np.float32), b.astype(np.float32)


KINDS = (
    "independent",
    "massive",
    "positive, then negative",
    "smooth, with an offset",
    "alternating",
)


def _errors(a: np.ndarray, b: np.ndarray, order: str) -> np.ndarray:
    exact = a.astype(np.float64) @ b.astype(np.float64).swapaxes(-1, -2)
    return np.asarray(np.linalg.norm(TRIALS[order](a, b) - exact, axis=-1))


def _wide(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a.astype(np.float64), b.astype(np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_no_order_errs_by_more_than_twice_the_envelope(kind: str) -> None:
    a, b = _terms(kind)
    envelope = np.sqrt(sum_variance(*_wide(a, b)).sum(-1))
    ratios = {order: float((_errors(a, b, order) / envelope).max()) for order in TRIALS}
    assert max(ratios.values()) < 2, ratios
    assert max(ratios.values()) > 0.2, f"an envelope this wide finds nothing: {ratios}"


@pytest.mark.parametrize("kind", ["positive, then negative", "alternating"])
def test_the_walk_alone_does_not_cover_terms_that_hang_together(kind: str) -> None:
    """The negative control of the other two estimates: they are needed."""
    a, b = _terms(kind)
    walk = np.sqrt(walk_variance(*_wide(a, b)).sum(-1))
    assert max(float((_errors(a, b, order) / walk).max()) for order in TRIALS) > 2


def test_equal_terms_err_by_more_than_any_variance_says() -> None:
    """Why there is a trial of orders at all: they round to one side every time."""
    values = np.linspace(0.5, 1, 40, dtype=np.float32)[None, :, None]
    a, b = np.full((1, 1, 1900), 0.1, np.float32), values * np.ones(1900, np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64).swapaxes(-1, -2)
    ratios = abs(TRIALS["serial"](a, b) - exact) / np.sqrt(sum_variance(*_wide(a, b)))
    assert ratios.max() > 4
    assert (abs(TRIALS["serial"](a, b) - exact) < error_bound(*_wide(a, b))).all()


@pytest.mark.parametrize("function", [walk_variance, sum_variance, error_bound])
def test_terms_that_are_zero_do_not_count(function: Callable[..., np.ndarray]) -> None:
    """As a causal row that sees a few keys of many."""
    a, b = _terms("independent")
    short = function(*_wide(a[..., :7], b[..., :7]))
    a[..., 7:] = 0
    found = function(*_wide(a, b))
    # The lanes divide their sums by the terms that stand in the row, which makes no more of them.
    assert (found <= short * (1 + 1e-9)).all() and (found >= short / 2).all()


def test_one_term_rounds_once_or_twice() -> None:
    a, b = np.full((1, 1, 1), 3.0), np.full((1, 1, 1), 5.0)
    assert np.sqrt(walk_variance(a, b)).item() == pytest.approx(15 * 2**-24 * np.sqrt(2 / 3))
