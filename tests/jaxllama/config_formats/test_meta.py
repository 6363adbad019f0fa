"""Meta's params.json: the published files, the width of the MLP, the rope factor it omits."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from configs import CONFIG, LINEAR, LLAMA3, META_SHAPED, refusal
from hypothesis import given
from hypothesis import strategies as st

from jaxllama.config import LlamaConfig
from jaxllama.config_formats.meta import feed_forward_size
from jaxllama.presets import PRESETS, preset

LLAMA_3_8B_PARAMS = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}
LLAMA_32_1B_PARAMS = {
    **LLAMA_3_8B_PARAMS,
    "dim": 2048,
    "n_layers": 16,
    "multiple_of": 256,
    "ffn_dim_multiplier": 1.5,
    "use_scaled_rope": True,
}


def no_ids(config: LlamaConfig) -> LlamaConfig:
    """The config without what params.json cannot say."""
    return config.replace(
        max_position_embeddings=None, bos_token_id=None, eos_token_ids=(), pad_token_id=None
    )


def test_published_files():
    plain = LlamaConfig.from_meta(LLAMA_3_8B_PARAMS, tie_word_embeddings=False)
    assert plain == no_ids(preset("llama-3-8b"))
    scaled = LlamaConfig.from_meta(
        {**LLAMA_3_8B_PARAMS, "use_scaled_rope": True}, tie_word_embeddings=False
    )
    assert scaled == no_ids(preset("llama-3.1-8b"))


def test_shape_published_with_another_factor_must_state_it():
    said = refusal(LlamaConfig.from_meta, LLAMA_32_1B_PARAMS, tie_word_embeddings=True)
    assert (
        'this is the shape of llama-3.2-1b, published with 32.0; add "rope_scaling_factor"' in said
    )
    stated = {**LLAMA_32_1B_PARAMS, "rope_scaling_factor": 32}
    assert LlamaConfig.from_meta(stated, tie_word_embeddings=True) == no_ids(preset("llama-3.2-1b"))
    # Unscaled, or of another shape, nothing is doubtful.
    unscaled = {**LLAMA_32_1B_PARAMS, "use_scaled_rope": False}
    assert LlamaConfig.from_meta(unscaled, tie_word_embeddings=True).rope_scaling is None
    deeper = {**LLAMA_32_1B_PARAMS, "n_layers": 17}
    assert LlamaConfig.from_meta(deeper, tie_word_embeddings=True).rope_scaling == LLAMA3


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_presets(name: str):
    config = PRESETS[name]
    params = json.loads(json.dumps(config.to_meta()))
    back = LlamaConfig.from_meta(params, tie_word_embeddings=config.tie_word_embeddings)
    assert back == no_ids(config)


@given(
    quarter=st.integers(1, 64),
    intermediate=st.integers(1, 3000),
    factor=st.sampled_from([8.0, 32.0]),
)
def test_round_trip_of_any_width(quarter: int, intermediate: int, factor: float):
    config = no_ids(META_SHAPED).replace(
        hidden_size=24 * quarter,
        head_dim=4 * quarter,
        intermediate_size=intermediate,
        rope_scaling=dataclasses.replace(LLAMA3, factor=factor),
    )
    params = config.to_meta()
    assert LlamaConfig.from_meta(params, tie_word_embeddings=False) == config


def test_metas_own_module_has_the_width_of_our_rule():
    """Meta's `FeedForward`, asked for the width it makes; its layers need no process group here."""
    from unittest import mock

    from llama_models.llama3 import model

    for dim, multiple_of, multiplier in ((4096, 1024, 1.3), (60, 8, None), (100, 7, 1.55)):
        with (
            mock.patch.object(model, "ColumnParallelLinear") as made,
            mock.patch.object(model, "RowParallelLinear"),
        ):
            model.FeedForward(dim, 4 * dim, multiple_of, multiplier)
        assert made.call_args.args[:2] == (dim, feed_forward_size(dim, multiple_of, multiplier))


def test_says_what_its_format_cannot():
    message = refusal(
        CONFIG.replace(rope_scaling=dataclasses.replace(LLAMA3, low_freq_factor=2.0)).to_meta
    )
    assert (
        "head_dim 10, but the format implies hidden_size / num_attention_heads = 40 / 6" in message
    )
    assert "low_freq_factor=2.0" in message
    assert "RopeScaling" in refusal(META_SHAPED.replace(rope_scaling=LINEAR).to_meta)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": -1}, "vocab_size -1, expected an integer"),
        ({"n_kv_heads": None}, "n_kv_heads is missing"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"norm_eps": 0}, "norm_eps 0, expected a finite number above 0"),
        ({"multiple_of": 0}, "multiple_of 0, expected an integer above 0"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier '1.3', expected a number above 0"),
        ({"n_heads": 33, "n_kv_heads": 3}, "dim 4096 is not a multiple of n_heads 33"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope 'yes', expected true or false"),
        ({"rope_scaling_factor": 8.0}, "use_scaled_rope is not true"),
        ({"use_scaled_rope": True, "rope_scaling_factor": 0.1}, "rope_scaling_factor: "),
        (
            {"moe_args": {"num_experts": 16}},
            "moe_args {'num_experts': 16} means a mixture of experts",
        ),
        ({"quantization_args": {"group_size": 32}}, "quantization_args"),
    ],
)
def test_refuses_by_name(changes: dict[str, Any], said: str):
    params = {**LLAMA_3_8B_PARAMS, **changes}
    assert said in refusal(LlamaConfig.from_meta, params, tie_word_embeddings=False)


def test_vocab_size_comes_from_the_weights():
    unsized = {**LLAMA_3_8B_PARAMS, "vocab_size": -1}
    config = LlamaConfig.from_meta(unsized, tie_word_embeddings=False, vocab_size=301)
    assert config.vocab_size == 301
    said = refusal(
        LlamaConfig.from_meta, LLAMA_3_8B_PARAMS, tie_word_embeddings=False, vocab_size=301
    )
    assert "vocab_size 128256, but the embedding has 301 rows" in said
