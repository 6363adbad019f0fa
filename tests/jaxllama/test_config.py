"""The config's own checks and the published presets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from configs import CONFIG, LLAMA3

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.errors import ConfigError
from jaxllama.presets import PRESETS, preset


def test_no_numeric_field_has_a_default():
    informative = {"bos_token_id", "eos_token_ids", "pad_token_id"}
    with_default = {
        field.name
        for field in dataclasses.fields(LlamaConfig)
        if field.default is not dataclasses.MISSING
    }
    assert with_default == informative
    required = {f.name for f in dataclasses.fields(RopeScaling) if f.default is dataclasses.MISSING}
    assert required == {"kind", "factor"}


def test_integers_become_floats_so_that_equal_configs_are_equal():
    assert isinstance(CONFIG.rope_theta, float)
    assert isinstance(LLAMA3.low_freq_factor, float)
    assert CONFIG.replace(rope_theta=500_000.0) == CONFIG
    assert hash(CONFIG) == hash(CONFIG.replace(rope_theta=500_000.0))
    assert CONFIG.replace(rope_theta=1e6) != CONFIG


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 0}, "vocab_size 0, expected an integer"),
        ({"hidden_size": -4}, "hidden_size -4, expected an integer"),
        ({"intermediate_size": 56.0}, "intermediate_size 56.0, expected an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers True, expected an integer"),
        ({"num_attention_heads": None}, "num_attention_heads is missing; it has no default"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value"),
        ({"head_dim": 9}, "head_dim 9 is odd"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps 0.0, expected a finite number above 0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps '1e-5', expected a finite number"),
        ({"rope_theta": -1.0}, "rope_theta -1.0, expected a finite number above 0"),
        ({"rope_theta": math.inf}, "rope_theta inf, expected a finite number"),
        ({"rope_theta": math.nan}, "rope_theta nan, expected a finite number"),
        ({"rope_scaling": {"factor": 8}}, "expected a RopeScaling or None"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is missing"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings 1, expected true or false"),
        ({"max_position_embeddings": 0}, "max_position_embeddings 0, expected an integer"),
        ({"bos_token_id": 61}, "bos_token_id 61, expected a token id in 0..60"),
        ({"pad_token_id": -1}, "pad_token_id -1, expected a token id in 0..60"),
        ({"eos_token_ids": (58, 99)}, "eos_token_ids 99, expected a token id in 0..60"),
        ({"eos_token_ids": (None,)}, "eos_token_ids None, expected a token id"),
        ({"eos_token_ids": 58}, "eos_token_ids 58, expected a tuple of token ids"),
    ],
)
def test_each_bad_field_is_named(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        CONFIG.replace(**changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)  # one fault, one line


def test_every_problem_is_in_one_error():
    with pytest.raises(ConfigError) as caught:
        CONFIG.replace(vocab_size=0, head_dim=7, rms_norm_eps=-1.0, num_key_value_heads=5)
    message = str(caught.value)
    assert message.startswith("model config: 4 problems")
    for name in ("vocab_size", "head_dim", "rms_norm_eps", "num_key_value_heads"):
        assert name in message


def test_absent_ids_are_allowed():
    config = CONFIG.replace(bos_token_id=None, eos_token_ids=(), pad_token_id=None)
    assert config.eos_token_ids == ()
    assert config.replace(max_position_embeddings=None).max_position_embeddings is None


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "yarn"}, "kind 'yarn', expected 'linear' or 'llama3'"),
        ({"factor": 0.5}, "factor 0.5, expected a finite number of at least 1"),
        ({"factor": None}, "factor is missing"),
        ({"low_freq_factor": None}, "low_freq_factor is missing"),
        ({"high_freq_factor": math.nan}, "high_freq_factor nan"),
        ({"low_freq_factor": 4.0}, "low_freq_factor 4.0 is not below high_freq_factor 4.0"),
        ({"original_max_position_embeddings": 8192.0}, "8192.0, expected an integer"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings 0"),
        ({"kind": "linear"}, "low_freq_factor 1.0 given, but linear scaling has a factor alone"),
    ],
)
def test_each_bad_scaling_field_is_named(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        RopeScaling(**{**vars(LLAMA3), **changes})
    assert said in str(caught.value)


def llama3_by_cases(inv_freq: float, scaling: RopeScaling) -> float:
    """The divisor of one frequency, case by case as it was published."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None
    assert high is not None
    context = scaling.original_context
    wavelength = 2 * math.pi / inv_freq
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return scaling.factor
    smooth = (context / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / scaling.factor + smooth)


@pytest.mark.parametrize("factor", [8, 32])
def test_frequency_factors_follow_the_published_cases(factor: float):
    scaling = dataclasses.replace(LLAMA3, factor=factor)
    inv_freq = 500_000.0 ** -(np.arange(64) / 64)
    expected = [llama3_by_cases(f, scaling) for f in inv_freq]
    np.testing.assert_allclose(scaling.frequency_factors(inv_freq), expected, rtol=1e-13)
    # All three cases occur, or the test would not tell them apart.
    assert {1.0, float(factor)} < set(expected)
    assert any(1 < f < factor for f in expected)


def test_linear_divides_every_frequency():
    inv_freq = np.array([1.0, 0.1, 0.001], np.float32)
    factors = RopeScaling(kind="linear", factor=4).frequency_factors(inv_freq)
    np.testing.assert_array_equal(factors, np.full(3, 4, np.float32))
    assert factors.dtype == np.float32


# From the config.json files on Meta's Hugging Face pages:
# D, F, L, N, K, H, stated context, rope factor, tied, end tokens.
PUBLISHED = {
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128, 8192, None, False, (128001,)),
    "llama-3-70b": (8192, 28672, 80, 64, 8, 128, 8192, None, False, (128001,)),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 131072, 8.0, False, (128001,)),
    "llama-3.1-70b": (8192, 28672, 80, 64, 8, 128, 131072, 8.0, False, (128001,)),
    "llama-3.1-405b": (16384, 53248, 126, 128, 8, 128, 131072, 8.0, False, (128001,)),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 131072, 32.0, True, (128001,)),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128, 131072, 32.0, True, (128001,)),
    "llama-3.3-70b": (8192, 28672, 80, 64, 8, 128, 131072, 8.0, False, (128001, 128008, 128009)),
}


def test_presets_hold_the_published_numbers():
    assert set(PRESETS) == set(PUBLISHED)
    for name, numbers in PUBLISHED.items():
        config = preset(name)
        scaling = config.rope_scaling
        assert numbers == (
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.max_position_embeddings,
            scaling and scaling.factor,
            config.tie_word_embeddings,
            config.eos_token_ids,
        ), name
        assert (config.vocab_size, config.rope_theta, config.rms_norm_eps) == (128256, 5e5, 1e-5)
        assert (config.bos_token_id, config.pad_token_id) == (128000, None)
        if scaling is not None:
            assert scaling == dataclasses.replace(LLAMA3, factor=scaling.factor), name


# Parameters as the model cards count them, in units of 10^9.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3-8b", 8.03),
        ("llama-3.1-70b", 70.55),
        ("llama-3.1-405b", 405.85),
        ("llama-3.2-1b", 1.24),
        ("llama-3.2-3b", 3.21),
    ],
)
def test_presets_add_up_to_the_published_sizes(name: str, billions: float):
    c = preset(name)
    D, H = c.hidden_size, c.head_dim
    attention = 2 * D * H * (c.num_attention_heads + c.num_key_value_heads)
    layer = attention + 3 * D * c.intermediate_size + 2 * D
    embeddings = c.vocab_size * D * (1 if c.tie_word_embeddings else 2)
    assert (layer * c.num_hidden_layers + embeddings + D) / 1e9 == pytest.approx(billions, abs=6e-3)


def test_an_unknown_preset_lists_the_known():
    assert preset("Llama-3.1-8B") is PRESETS["llama-3.1-8b"]
    with pytest.raises(ConfigError, match=r"no preset 'llama-4'; there are llama-3-8b, .*405b"):
        preset("llama-4")
