"""Hugging Face config.json: both spellings of the scaling, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIG, LINEAR, LLAMA3, META_SHAPED, refusal, without

from jaxllama.config import LlamaConfig, RopeScaling


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3])
@pytest.mark.parametrize("eos", [(), (58,), (58, 60)])
def test_round_trip_through_json(scaling: RopeScaling | None, eos: tuple[int, ...]):
    config = CONFIG.replace(rope_scaling=scaling, eos_token_ids=eos, tie_word_embeddings=True)
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3])
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_ours_and_we_read_its(
    scaling: RopeScaling | None, tied: bool, tmp_path: Path
):
    from transformers import LlamaConfig as Theirs

    ours = META_SHAPED.replace(rope_scaling=scaling, tie_word_embeddings=tied)
    theirs = Theirs(**ours.to_hf())
    for name in ("head_dim", "rms_norm_eps", "num_key_value_heads", "tie_word_embeddings"):
        assert getattr(theirs, name) == getattr(ours, name)
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == ours.rope_theta
    assert rope["rope_type"] == (scaling.kind if scaling else "default")
    assert rope.get("factor") == (scaling.factor if scaling else None)
    theirs.save_pretrained(tmp_path)  # writes rope_parameters
    assert LlamaConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == ours


def hf(**changes: Any) -> dict[str, Any]:
    return {**CONFIG.to_hf(), **changes}


def test_head_dim_alone_may_be_left_out():
    config = CONFIG.replace(hidden_size=48)  # 48 / 6 = 8, not the 10 that was stated
    assert LlamaConfig.from_hf(without(config.to_hf(), "head_dim")).head_dim == 8
    said = refusal(LlamaConfig.from_hf, without(CONFIG.to_hf(), "head_dim"))  # 40 / 6
    assert said == "config.json: head_dim is missing; it has no default, state it"


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "hidden_act",
        "model_type",
    ],
)
def test_no_numeric_field_has_a_default(name: str):
    assert f"{name} is missing" in refusal(LlamaConfig.from_hf, without(CONFIG.to_hf(), name))
    assert f"{name} is missing" in refusal(LlamaConfig.from_hf, hf(**{name: None}))


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind_key", ["rope_type", "type"])
def test_every_spelling_of_the_scaling(spelling: str, kind_key: str):
    said = CONFIG.to_hf()
    rope = said.pop("rope_scaling")
    rope[kind_key] = rope.pop("rope_type")
    if spelling == "rope_parameters":
        rope["rope_theta"] = said.pop("rope_theta")
    assert LlamaConfig.from_hf({**said, spelling: rope}) == CONFIG


def test_default_rope_parameters():
    said = without(CONFIG.to_hf(), "rope_theta", "rope_scaling")
    for rope in (
        {"rope_theta": 500_000.0, "rope_type": "default"},
        {"rope_theta": 500_000, "rope_type": "default", "partial_rotary_factor": 1.0},
        {"rope_theta": 500_000.0},
    ):
        assert LlamaConfig.from_hf({**said, "rope_parameters": rope}) == CONFIG.replace(
            rope_scaling=None
        )


ROPE = CONFIG.to_hf()["rope_scaling"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {**ROPE, "rope_type": "yarn"}}, "rope_scaling.rope_type 'yarn' is not"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope' is not supported"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type is missing"),
        ({"rope_scaling": {**ROPE, "type": "linear"}}, "rope_type 'llama3' and type 'linear'"),
        ({"rope_scaling": without(ROPE, "factor")}, "rope_scaling.factor is missing"),
        ({"rope_scaling": without(ROPE, "low_freq_factor")}, "low_freq_factor is missing"),
        ({"rope_scaling": {**ROPE, "attention_factor": 0.7}}, "rope_scaling.attention_factor 0.7"),
        ({"rope_scaling": {**ROPE, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": 8.0}, "rope_scaling 8.0, expected an object"),
        ({"rope_parameters": {**ROPE, "factor": 32.0}}, "contradict each other"),
        ({"rope_parameters": {**ROPE, "rope_theta": 1e6}}, "rope_parameters.rope_theta 1000000.0"),
        ({"rope_scale": {"factor": 8.0}}, "rope_scale {'factor': 8.0} is not a known field"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' means another activation"),
        ({"attention_bias": True}, "attention_bias True means biases"),
        ({"mlp_bias": True}, "mlp_bias True means biases"),
        ({"pretraining_tp": 2}, "pretraining_tp 2 means"),
        ({"model_type": "mistral"}, "model_type 'mistral' means another architecture"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"sliding_window": 4096}, "sliding_window 4096 means another attention mask"),
        ({"quantization_config": {"bits": 4}}, "quantised weights; dequantise"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 means"),
        ({"rope_interleaved": True}, "rope_interleaved True means interleaved"),
        (
            {"attention_multiplier": 0.1},
            "attention_multiplier 0.1 means another scale of the scores",
        ),
        # A tokenizer.json by mistake: its vocabulary is not printed whole.
        ({"model": list(range(10**5))}, "model [0, 1, 2, 3, 4, 5, ...] is not a known field"),
        ({"use_qk_norm": True}, "use_qk_norm True is not a known field"),
        ({"no_rope_layers": [1, 0, 1]}, "no_rope_layers [1, 0, 1] means layers without rotation"),
        ({"norm": "layernorm"}, "norm 'layernorm' is not a known field"),
        ({"rms_norm_eps": "1e-05"}, "rms_norm_eps '1e-05', expected a finite number"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple"),
    ],
)
def test_refuses_by_name(changes: dict[str, Any], said: str):
    message = refusal(LlamaConfig.from_hf, hf(**changes), source="some/config.json")
    assert said in message
    assert message.startswith("some/config.json: ")


def test_all_problems_are_in_one_error():
    message = refusal(
        LlamaConfig.from_hf, hf(hidden_act="relu", magic=3, rms_norm_eps=-1.0, rope_scaling="x")
    )
    assert message.startswith("config.json: 4 problems")
    assert all(name in message for name in ("hidden_act", "magic", "rms_norm_eps", "rope_scaling"))


def test_harmless_and_agreeing_fields_are_passed_over():
    harmless = {
        "attention_dropout": 0.0,
        "id2label": {"0": "LABEL_0"},
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "rope_parameters": {},
        "rope_interleaved": False,
        "torch_dtype": "bfloat16",
        "unknown_but_null": None,
        "use_cache": True,
    }
    assert LlamaConfig.from_hf(hf(**harmless)) == CONFIG
    both = hf(rope_parameters={**ROPE, "rope_theta": 500_000})
    assert LlamaConfig.from_hf(both) == CONFIG
