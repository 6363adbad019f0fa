from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from jaxllama.checkpoint import in_memory, load_model, open_checkpoint, tiny, validate
from jaxllama.checkpoint.samples import TINY
from jaxllama.errors import CheckpointError, InputError

K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def _weights(**overrides):
    checkpoint = tiny(num_hidden_layers=2, **overrides)
    return checkpoint.config, {n: checkpoint.read(n).copy() for n in checkpoint.tensors}


def _message(config, weights) -> str:
    messages = []
    for check in (validate, lambda c: load_model(c, dtype=np.float32)):
        with pytest.raises(CheckpointError) as error:
            check(in_memory(config, weights))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    return messages[0]


def test_parameters_are_the_tensors_stacked():
    checkpoint = tiny(num_hidden_layers=2)
    model = load_model(checkpoint, dtype=np.float32, param_dtype=np.float64)
    weight = model.layers.mlp.down_proj.weight[...]
    assert weight.dtype == np.float64 and isinstance(weight, jax.Array)
    for i in range(2):
        expected = checkpoint.read(f"model.layers.{i}.mlp.down_proj.weight")
        assert np.array_equal(weight[i], expected.astype(np.float64))
    assert np.array_equal(model.lm_head.weight[...], checkpoint.read("lm_head.weight"))


def test_tied_model_has_no_head():
    assert load_model(tiny(tie_word_embeddings=True), dtype=np.float32).lm_head is None


def test_all_problems_in_one_message():
    config, weights = _weights()
    del weights["model.norm.weight"]
    weights["model.layers.0.mlp.up_proj.weight"] = np.zeros((136, 95), np.float32)
    weights["model.layers.0.mlp.gate_proj.weight"][3, 4] = np.nan
    weights["model.layers.1.mlp.gate_proj.weight"][0, 0] = np.inf
    weights["model.layers.0.input_layernorm.weight"] = np.ones(96, np.int8)
    weights["model.layers.7.input_layernorm.weight"] = np.ones(96, np.float32)
    message = _message(config, weights)
    for part in (
        "num_hidden_layers is 2 in its config, but the weights have 3 layers",
        "model.norm.weight: missing, expected shape (96,)",
        "model.layers.0.mlp.up_proj.weight: shape (136, 95), expected (136, 96) = (F, D); "
        "check hidden_size",
        "model.layers.0.mlp.gate_proj.weight: 1 elements NaN or infinite, the first (NaN) at (3",
        "model.layers.1.mlp.gate_proj.weight: 1 elements NaN or infinite, the first (infinite)",
        "model.layers.0.input_layernorm.weight: dtype int8",
        "model.layers.7.input_layernorm.weight: unexpected",
    ):
        assert part in message
    assert "7 problems" in message


def test_config_that_contradicts_the_weights_names_the_field():
    _, weights = _weights()
    message = _message(TINY.replace(num_hidden_layers=2, num_key_value_heads=3), weights)
    assert (
        f"{K_PROJ}: shape (32, 96), expected (48, 96) = (K*H, D); check num_key_value_heads in "
        "its config" in message
    )


def test_absurd_layer_count_is_not_enumerated():
    _, weights = _weights()
    message = _message(TINY.replace(num_hidden_layers=2**31 - 1), weights)
    assert len(message) < 500


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_nan_is_found_in_every_dtype(dtype):
    checkpoint = tiny(num_hidden_layers=1, dtype=dtype)
    weights = {n: checkpoint.read(n).copy() for n in checkpoint.tensors}
    validate(in_memory(checkpoint.config, weights))
    weights["lm_head.weight"][-1, -1] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        validate(in_memory(checkpoint.config, weights))


def test_overflow_of_a_narrower_dtype_is_refused():
    config, weights = _weights()
    weights["model.norm.weight"][5] = 1e6
    with pytest.raises(CheckpointError, match="overflow in float16"):
        load_model(in_memory(config, weights), dtype=np.float16)


@pytest.mark.parametrize("equal", [True, False])
def test_head_stored_though_tied(single, equal):
    config = json.loads((single / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (single / "config.json").write_text(json.dumps(config))
    if equal:
        _copy_embedding_over_head(single / "model.safetensors")
    checkpoint = open_checkpoint(single)
    assert any("though tie_word_embeddings" in note for note in checkpoint.notes)
    assert "lm_head.weight" not in checkpoint.tensors
    if equal:
        assert load_model(checkpoint, dtype=np.float32).lm_head is None
    else:
        with pytest.raises(CheckpointError, match=r"differs from model\.embed_tokens\.weight"):
            load_model(checkpoint, dtype=np.float32)


def _copy_embedding_over_head(path):
    from jaxllama.checkpoint.hf.safetensors_file import read_header

    slots, data = read_header(path), bytearray(path.read_bytes())
    source, target = slots["model.embed_tokens.weight"], slots["lm_head.weight"]
    values = data[source.offset : source.offset + source.nbytes]
    data[target.offset : target.offset + target.nbytes] = values
    path.write_bytes(data)


def test_float64_without_x64_is_refused():
    with jax.enable_x64(False), pytest.raises(InputError, match="jax_enable_x64"):
        load_model(tiny(num_hidden_layers=1), dtype=np.float64)
