"""Rotary embedding: frequencies against two other implementations, rotation against its laws."""

from __future__ import annotations

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_llama import CONFIG, LINEAR, LLAMA3, published_inv_freq
from transformers import LlamaConfig as HfConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.rope import apply_rope, inv_freq, rope_cos_sin

SCALINGS: dict[str, RopeScaling | None] = {"default": None, "linear": LINEAR, "llama3": LLAMA3}
U32 = 2.0**-24


def configured(kind: str) -> LlamaConfig:
    return CONFIG.replace(rope_scaling=SCALINGS[kind], head_dim=64)


def hf_inv_freq(config: LlamaConfig, kind: str) -> np.ndarray:
    hf = HfConfig(**config.to_hf())
    function = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    table, attention_factor = function(hf, device="cpu")
    assert attention_factor == 1.0
    return table.numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected) / np.abs(expected)))


def table_bound(config: LlamaConfig) -> float:
    # theta ** e in float32: the exponent's own rounding is magnified by ln(theta), the power and
    # the reciprocal add a rounding each, the llama3 blend about four more.
    return (math.log(config.rope_theta) + 6) * U32


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_equal_the_published_formula(kind: str) -> None:
    config = configured(kind)
    assert relative(inv_freq(config), published_inv_freq(config)) < 1e-14


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_equal_transformers_to_its_float32(kind: str) -> None:
    config = configured(kind)
    expected = hf_inv_freq(config, kind)
    assert expected.dtype == np.float32
    assert relative(inv_freq(config), expected) < table_bound(config)


def test_each_scaling_is_told_from_every_other() -> None:
    """Negative control of the two tests above: their bounds would not let another kind pass."""
    tables = {kind: inv_freq(configured(kind)) for kind in SCALINGS}
    for kind, table in tables.items():
        for other in SCALINGS:
            if other != kind:
                assert relative(table, hf_inv_freq(configured(other), other)) > 0.5
    wrong_theta = configured("llama3").replace(rope_theta=5.001e5)
    expected = hf_inv_freq(configured("llama3"), "llama3")
    assert relative(inv_freq(wrong_theta), expected) > table_bound(wrong_theta)


def test_llama3_keeps_blends_and_divides() -> None:
    plain, scaled = inv_freq(configured("default")), inv_freq(configured("llama3"))
    factor = plain / scaled
    assert factor[0] == 1.0
    assert factor[-1] == pytest.approx(8.0, rel=1e-15)
    between = (factor > 1.001) & (factor < 7.999)
    assert between.sum() >= 2
    assert (np.diff(factor) >= 0).all()


@pytest.mark.parametrize("kind", SCALINGS)
def test_angles_past_the_original_context(kind: str) -> None:
    config = configured(kind)
    table = inv_freq(config)
    positions = np.array([[8191, 8192, 8193, 100_000, 131_071]], np.int32)
    cos, sin = rope_cos_sin(jnp.asarray(table), jnp.asarray(positions), jnp.float64)
    angles = positions[0][:, None] * published_inv_freq(config)
    # An angle of 1e5 rad has an absolute rounding of 1e5 * 2^-53.
    assert np.abs(cos[0] - np.cos(angles)).max() < 1e-9
    assert np.abs(sin[0] - np.sin(angles)).max() < 1e-9
    # transformers: float32 table and float32 product, so each angle is off by its size times both.
    expected = np.cos(positions[0][:, None].astype(np.float32) * hf_inv_freq(config, kind))
    off = np.abs(np.asarray(cos[0]) - expected)
    assert (off <= angles * (table_bound(config) + U32) + 2 * U32).all()


def test_bfloat16_positions_would_collide() -> None:
    table, positions = jnp.asarray(inv_freq(CONFIG)), jnp.array([[256, 257]])
    cos, _ = rope_cos_sin(table, positions, jnp.bfloat16)
    assert cos.dtype == jnp.float32
    assert (cos[0, 0] != cos[0, 1]).any()
    rounded = positions.astype(jnp.bfloat16)
    assert rounded[0, 0] == rounded[0, 1]


def rotated(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    cos, sin = rope_cos_sin(jnp.asarray(inv_freq(CONFIG)), jnp.asarray(positions), jnp.float64)
    return np.asarray(apply_rope(jnp.asarray(x), cos, sin))


B, T, N, H = 2, 5, 3, CONFIG.head_dim
X = np.random.default_rng(0).standard_normal((2, B, T, N, H))


def test_rotation_is_a_complex_product_per_pair() -> None:
    positions = np.arange(B * T).reshape(B, T)
    half = H // 2
    turn = np.exp(1j * positions[:, :, None, None] * published_inv_freq(CONFIG))
    expected = (X[0][..., :half] + 1j * X[0][..., half:]) * turn
    found = rotated(X[0], positions)
    np.testing.assert_allclose(found[..., :half], expected.real, atol=1e-14)
    np.testing.assert_allclose(found[..., half:], expected.imag, atol=1e-14)
    # Control: pairs taken as neighbours (2i, 2i + 1), the interleaved layout, are another thing.
    interleaved = (X[0][..., ::2] + 1j * X[0][..., 1::2]) * turn
    assert np.abs(found[..., ::2] - interleaved.real).max() > 0.1


def test_position_zero_rotates_nothing_and_no_position_changes_length() -> None:
    np.testing.assert_array_equal(rotated(X[0], np.zeros((B, T), int)), X[0])
    far = rotated(X[0], np.full((B, T), 100_003))
    np.testing.assert_allclose(np.linalg.norm(far, axis=-1), np.linalg.norm(X[0], axis=-1))


@given(shift=st.integers(0, 120_000), origin=st.integers(0, 9000))
def test_scores_depend_on_the_difference_of_positions_alone(shift: int, origin: int) -> None:
    positions = np.array([[0, 3, 4, 70, 71], [0, 1, 2, 3, 900]]) + origin

    def scores(moved_q: int, moved_k: int) -> np.ndarray:
        q, k = rotated(X[0], positions + moved_q), rotated(X[1], positions + moved_k)
        return np.einsum("btnh,bsnh->bnts", q, k)

    # The angles are below 1.3e5 rad and so rounded at 1.5e-11; H of them add up in a score.
    np.testing.assert_allclose(scores(shift, shift), scores(0, 0), atol=1e-8)
    # Control: moving the queries alone does change them.
    if shift % 9000:
        assert np.abs(scores(shift, 0) - scores(0, 0)).max() > 1e-4


def test_rotation_rounds_once() -> None:
    """In bfloat16 the whole rotation happens in float32 and is rounded at the end."""
    x = X[0].astype(ml_dtypes.bfloat16)
    positions = np.arange(B * T).reshape(B, T) + 500
    cos, sin = rope_cos_sin(jnp.asarray(inv_freq(CONFIG)), jnp.asarray(positions), jnp.bfloat16)
    found = np.asarray(apply_rope(jnp.asarray(x), cos, sin))
    assert found.dtype == ml_dtypes.bfloat16
    exact = rotated(x.astype(np.float64), positions)
    # Half a unit in the last place of bfloat16, and what float32 angles of 500 rad are off by.
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-8 * 1.01 + 1e-4).all()
    assert np.mean(found == exact.astype(ml_dtypes.bfloat16)) > 0.98
