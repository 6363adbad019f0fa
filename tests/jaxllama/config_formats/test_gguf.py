"""GGUF metadata: float32, the keys in use, and llama3 scaling solved from its tensor."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from configs import CONFIG, LINEAR, LLAMA3, META_SHAPED, refusal, without

from jaxllama.config import LlamaConfig
from jaxllama.config_formats.gguf import shortest_float
from jaxllama.presets import PRESETS
from jaxllama.rope import inv_freq


def as_stored(config: LlamaConfig) -> dict[str, Any]:
    """The metadata as a GGUF file holds it: floats as float32, integers as uint32."""
    return {
        key: np.float32(value)
        if isinstance(value, float)
        else np.uint32(value)
        if isinstance(value, int)
        else value
        for key, value in config.to_gguf().items()
    }


def stored_factors(config: LlamaConfig) -> np.ndarray | None:
    if config.rope_scaling is None or config.rope_scaling.kind == "linear":
        return None
    plain = inv_freq(config.replace(rope_scaling=None))
    return config.rope_scaling.frequency_factors(plain).astype(np.float32)


GGUF_CASES = {
    "plain": CONFIG.replace(rope_scaling=None),
    "linear": CONFIG.replace(rope_scaling=LINEAR),
    "llama3": CONFIG,
    "other band": CONFIG.replace(
        rope_scaling=dataclasses.replace(
            LLAMA3, low_freq_factor=2.0, high_freq_factor=8.5, original_max_position_embeddings=64
        )
    ),
    # The slowest frequency is still inside the blended band: its divisor is not the factor.
    "blended": CONFIG.replace(
        rope_theta=3600.0, rope_scaling=dataclasses.replace(LLAMA3, factor=32.0)
    ),
    "no ids": CONFIG.replace(bos_token_id=None, eos_token_ids=(), pad_token_id=None),
    **PRESETS,
}


@pytest.mark.parametrize("name", GGUF_CASES)
def test_round_trip(name: str):
    config = GGUF_CASES[name]
    back = LlamaConfig.from_gguf(
        as_stored(config),
        tie_word_embeddings=config.tie_word_embeddings,
        rope_freqs=stored_factors(config),
    )
    assert back == config


def test_the_blended_case_is_one():
    factors = stored_factors(GGUF_CASES["blended"])
    assert factors is not None
    assert 1 < factors[-1] < 32


@pytest.mark.parametrize("name", ["llama3", "blended", "llama-3.2-1b"])
def test_factors_computed_in_float32_are_recognised(name: str):
    """As llama.cpp's converter computes them."""
    config = GGUF_CASES[name]
    half = config.head_dim // 2
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    plain = np.float32(1) / np.float32(config.rope_theta) ** exponents
    assert plain.dtype == np.float32
    assert config.rope_scaling is not None
    factors = config.rope_scaling.frequency_factors(plain)
    back = LlamaConfig.from_gguf(
        as_stored(config), tie_word_embeddings=config.tie_word_embeddings, rope_freqs=factors
    )
    assert back == config


def test_float32_is_read_as_what_was_meant():
    assert shortest_float(9.999999747378752e-06) == 1e-05
    assert shortest_float(np.float32(500_000.0)) == 500_000.0
    metadata = {**as_stored(CONFIG), "llama.attention.layer_norm_rms_epsilon": 9.99999997475e-07}
    config = LlamaConfig.from_gguf(
        metadata, tie_word_embeddings=False, rope_freqs=stored_factors(CONFIG)
    )
    assert config.rms_norm_eps == 1e-06


def gguf(**changes: Any) -> dict[str, Any]:
    metadata = as_stored(CONFIG.replace(rope_scaling=None))
    for key, value in changes.items():
        metadata[key.replace("__", ".")] = value
    return metadata


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general__architecture": "qwen2"}, "general.architecture 'qwen2', expected 'llama'"),
        ({"general__type": "adapter"}, "general.type 'adapter' means another kind of model"),
        ({"llama__expert_count": 8}, "llama.expert_count 8 means another kind of model"),
        ({"llama__attention__causal": False}, "llama.attention.causal False"),
        (
            {"llama__attention__scale": 0.1},
            "llama.attention.scale 0.1 means another scale of the scores",
        ),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count 8 differ"),
        ({"llama__attention__value_length": 8}, "llama.attention.value_length 8"),
        ({"llama__attention__head_count": [6, 6, 4]}, "llama.attention.head_count [6, 6, 4]"),
        ({"llama__attention__head_count_kv": None}, "llama.attention.head_count_kv is missing"),
        ({"llama__rope__freq_base": None}, "llama.rope.freq_base is missing"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type 'yarn' is not supported"),
        ({"llama__rope__scaling__type": "linear"}, "llama.rope.scaling.factor: factor 0.0"),
        ({"llama__vocab_size": 60}, "llama.vocab_size 60, but the embedding has 61 rows"),
    ],
)
def test_refuses_by_name(changes: dict[str, Any], said: str):
    metadata = gguf(**changes)
    assert said in refusal(
        LlamaConfig.from_gguf, metadata, tie_word_embeddings=False, vocab_size=61
    )


def test_spellings_of_linear_scaling():
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        config = LlamaConfig.from_gguf({**gguf(), key: 2.5}, tie_word_embeddings=False)
        assert config.rope_scaling == LINEAR  # llama.cpp takes a factor without a type for linear
    none = {**gguf(), "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.5}
    assert LlamaConfig.from_gguf(none, tie_word_embeddings=False).rope_scaling is None


def test_factors_that_are_not_llama3_are_refused():
    factors = stored_factors(CONFIG)
    assert factors is not None
    wrong = factors.copy()
    wrong[2] *= 1.01
    read = LlamaConfig.from_gguf
    assert "is not what llama3 scaling gives" in refusal(
        read, gguf(), tie_word_embeddings=False, rope_freqs=wrong
    )
    for bad in (factors[:-1], factors * np.nan, -factors):
        said = refusal(read, gguf(), tie_word_embeddings=False, rope_freqs=bad)
        assert "expected (5,) = (head_dim / 2,), finite and above 0" in said
    linear = {**gguf(), "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5}
    assert "together with rope_freqs.weight" in refusal(
        read, linear, tie_word_embeddings=False, rope_freqs=factors
    )
    ones = np.ones_like(factors)
    assert read(gguf(), tie_word_embeddings=False, rope_freqs=ones).rope_scaling is None


def test_head_dim_and_vocabulary_may_come_from_elsewhere():
    metadata = without(
        as_stored(META_SHAPED.replace(rope_scaling=None)),
        "llama.vocab_size",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
    )
    config = LlamaConfig.from_gguf(metadata, tie_word_embeddings=True, vocab_size=61)
    assert (config.vocab_size, config.head_dim, config.tie_word_embeddings) == (61, 10, True)


def test_end_of_turn_is_an_end_too():
    metadata = without(gguf(), "jaxllama.eos_token_ids") | {"tokenizer.ggml.eot_token_id": 41}
    config = LlamaConfig.from_gguf(metadata, tie_word_embeddings=False)
    assert config.eos_token_ids == (58, 41)
