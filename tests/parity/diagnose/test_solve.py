"""What an operator did, solved from what went in and what came out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jaxllama.checkpoint.samples import TINY
from jaxllama.config import RopeScaling
from jaxllama.rope import inv_freq
from parity.diagnose import solve

B, T, N, H = 2, 11, 3, 16
RNG = np.random.default_rng(5)


def rotated(x: np.ndarray, freq: np.ndarray, positions: np.ndarray, pairing: str) -> np.ndarray:
    turn = np.exp(1j * positions[:, :, None, None] * freq)
    z = solve.complex_pairs(x, pairing) * turn
    if pairing == "interleaved":
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("pairing", ["half-split", "interleaved"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_rotation_tells_pairing_sign_and_frequencies(pairing: str, sign: int) -> None:
    freq = sign * inv_freq(TINY)
    positions = np.arange(T)[None] + np.array([[0], [8209]])
    x = RNG.standard_normal((B, T, N, H))
    found = solve.rotation(x, rotated(x, freq, positions, pairing))
    assert found.pairing == pairing
    assert found.residual < 1e-12
    valid = np.ones((B, T), bool)
    solved = solve.frequencies(found.turn, positions, valid)
    np.testing.assert_allclose(solved, freq, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_turns_tell_positions(noise: float) -> None:
    table = inv_freq(TINY)
    positions = np.array([[7, 3, 0, 8209, 9, 1], [4, 4, 5000, 2, 1, 0]])
    valid = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    turn = np.exp(1j * (positions[..., None] * table + noise * RNG.standard_normal(len(table))))
    found = solve.solve_positions(turn, table, valid, 9000)
    np.testing.assert_array_equal(found, np.where(valid, positions, 0))


def test_turns_of_no_whole_position_tell_none() -> None:
    table, valid = inv_freq(TINY), np.ones((1, 2), bool)
    turn = np.exp(1j * np.array([[[3.5], [4.0]]]) * table)
    assert solve.solve_positions(turn, table, valid, 100) is None
    turn = np.exp(1j * np.array([[[50.0], [4.0]]]) * table)
    assert solve.solve_positions(turn, table, valid, 40) is None  # none is that far


@pytest.mark.parametrize(("offset", "stride"), [(1, 1), (0, 2), (5, 3), (-2, -1)])
def test_positions_tell_offset_and_stride(offset: int, stride: int) -> None:
    right = np.arange(20)
    assert solve.offset_and_stride(offset + stride * right, right) == (offset, stride)
    assert solve.offset_and_stride(right**2, right) is None
    assert solve.offset_and_stride(right[:1], right[:1]) is None


def test_what_is_no_rotation_leaves_a_residual() -> None:
    x, y = RNG.standard_normal((2, B, T, N, H))
    assert solve.rotation(x, y).residual > 0.1


LLAMA3 = TINY.rope_scaling
assert LLAMA3 is not None
CHANGES = {
    "theta": {"rope_theta": 1e6},
    "no scaling": {"rope_scaling": None},
    "theta, no scaling": {"rope_theta": 1e4, "rope_scaling": None},
    "linear": {"rope_scaling": RopeScaling(kind="linear", factor=8.0)},
    "factor": {"rope_scaling": replace(LLAMA3, factor=32.0)},
    "low": {"rope_scaling": replace(LLAMA3, low_freq_factor=1.5)},
    "high": {"rope_scaling": replace(LLAMA3, high_freq_factor=2.5)},
    "odd theta": {"rope_theta": 123456.789},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_table_tells_theta_and_scaling(change: str, dtype: type) -> None:
    wrong = TINY.replace(**CHANGES[change])
    found = solve.solve_frequencies(inv_freq(wrong).astype(dtype), TINY)
    assert found.exact
    assert found.theta == pytest.approx(wrong.rope_theta, rel=1e-6)
    made = inv_freq(TINY.replace(rope_theta=found.theta, rope_scaling=found.scaling))
    np.testing.assert_allclose(made, inv_freq(wrong), rtol=1e-6)


def test_a_table_of_no_theta_is_not_called_exact() -> None:
    assert not solve.solve_frequencies(inv_freq(TINY)[::-1], TINY).exact


def test_scores_tell_the_head_map() -> None:
    made = RNG.standard_normal((6, 2, 5, 5))
    heads = [0, 1, 0, 1, 0, 1]
    found, left = solve.head_map(made[np.arange(6), heads], made)
    assert (found, left) == (heads, 0.0)
    assert solve.head_map(RNG.standard_normal((6, 5, 5)), made)[1] > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_tell_what_rounded_them(dtype: str) -> None:
    values = RNG.standard_normal(50)
    rounded = values.astype(dtype).astype(np.float64)
    assert solve.rounded_through(values, rounded) == dtype
    assert solve.rounded_through(values, values) is None
    assert solve.rounded_through(values, values + 1) is None
