"""Orders of summation: each sums every term once, and each in float32 by its own way."""

from __future__ import annotations

import numpy as np
import pytest

from parity.noise.orders import ORDERS, TRIALS, ordered_sum


@pytest.mark.parametrize("terms", [1, 5, 64, 67])
@pytest.mark.parametrize("name", ORDERS)
def test_every_term_is_summed_once(name: str, terms: int) -> None:
    places = ORDERS[name](terms)
    assert sorted(places[places >= 0].tolist()) == list(range(terms))


def test_serial_is_what_a_loop_gives() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 67)).astype(np.float32)
    loop = np.float32(0)
    for x, y in zip(a, b, strict=True):
        loop = np.float32(loop + np.float32(x * y))
    assert ordered_sum(a[None, None], b[None, None], ORDERS["serial"], fused=False).item() == loop


def test_fused_products_are_not_rounded() -> None:
    tiny = np.float32(2.0**-23)
    a = np.array([[[-1, 1 + tiny]]], np.float32)
    b = np.array([[[1, 1 - tiny]]], np.float32)
    rounded, fused = (ordered_sum(a, b, ORDERS["serial"], fused=f).item() for f in (False, True))
    assert (rounded, fused) == (0.0, -(2.0**-46))


def test_all_orders_differ_in_bits_on_long_sums() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 1, 40, 960)).astype(np.float32)
    found = {name: sum_up(a, b).tobytes() for name, sum_up in TRIALS.items()}
    assert len(set(found.values())) == len(TRIALS)


def test_outputs_are_split_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(1, 2, 31)), rng.normal(size=(1, 50, 31))
    a, b = a.astype(np.float32), b.astype(np.float32)
    whole = TRIALS["8 lanes"](a, b)
    monkeypatch.setattr("parity.noise.orders._ELEMENTS", 100)
    assert np.array_equal(TRIALS["8 lanes"](a, b), whole)
