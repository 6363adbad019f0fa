"""A checkpoint's weights under other names and layouts, there and into modules."""

from __future__ import annotations

from typing import Any

import foreign_llamas as llamas
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from foreign_subjects import CHECKPOINT, CONFIG, hf, tunix
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM
from witnesses import LAYERS, small

import parity
from jaxllama.errors import InputError
from parity.subjects import Tap, load_into, weights_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tunix")
SETTINGS: dict[str, Any] = {"scenarios": "packed", "length": 9, "modes": "free", "seconds": 0.1}
Q, UP = "model.layers.{i}.self_attn.q_proj.weight", "model.layers.{i}.mlp.up_proj.weight"


def empty_hf(checkpoint: Any = CHECKPOINT) -> LlamaForCausalLM:
    config = HFConfig(**checkpoint.hf_config, attn_implementation="eager")
    return LlamaForCausalLM(config).eval()


def test_a_torch_module_is_filled() -> None:
    weights = weights_for(llamas.HF_PARAMETERS, CHECKPOINT)
    assert set(weights) == set(CHECKPOINT.tensors)
    model = load_into(empty_hf(), weights)
    assert parity.run(CHECKPOINT, subject=hf(model), **SETTINGS).verdict == "equal"


def test_a_tied_head_is_the_embedding() -> None:
    tied = small(tied=True, scaling=None)
    weights = weights_for(llamas.HF_PARAMETERS, tied, "f32")
    assert np.array_equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    model = load_into(empty_hf(tied), weights)
    without = {name: array for name, array in weights.items() if name != "lm_head.weight"}
    again = load_into(empty_hf(tied), without)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


def test_an_nnx_module_is_filled_in_its_own_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = llamas.tunix().apply_rope
    monkeypatch.setattr(rotate, "__defaults__", (int(CONFIG.rope_theta),))
    right = llamas.tunix_model(CHECKPOINT)
    model = llamas.tunix_model(small(seed=7, scaling=None))
    weights = weights_for(llamas.TUNIX_PARAMETERS, CHECKPOINT, jnp.float32)
    assert weights["layers.1.attn.q_proj.w"].shape == right.layers[1].attn.q_proj.w[...].shape
    assert not np.array_equal(model.final_norm.w[...], right.final_norm.w[...])
    load_into(model, weights)
    for mine, theirs in zip(
        nnx.to_flat_state(nnx.state(model, nnx.Param)),
        nnx.to_flat_state(nnx.state(right, nnx.Param)),
        strict=True,
    ):
        assert np.array_equal(mine[1][...], theirs[1][...]), mine[0]
    assert parity.run(CHECKPOINT, subject=tunix(model), **SETTINGS).verdict == "equal"


def test_layouts_of_all_layers_pairs_and_scales() -> None:
    rest = {name: name for name in llamas.HF_PARAMETERS if name not in (Q, UP)}
    changed: Any = {"ups": Tap(UP, axes="DLF"), "q{i}": Tap(Q, axes="D(NR2)", scale=4.0)}
    found = weights_for({**rest, **changed}, CHECKPOINT, "f64")
    D, F, N = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_attention_heads
    assert found["ups"].shape == (D, LAYERS, F)
    up = CHECKPOINT.read(UP.replace("{i}", "1")).astype(np.float64)
    assert np.array_equal(found["ups"][:, 1], up.T)
    q = CHECKPOINT.read(Q.replace("{i}", "2")).astype(np.float64).reshape(N, 2, -1, D)
    pairs = q.transpose(0, 2, 1, 3).reshape(-1, D).T / 4
    assert np.array_equal(found["q2"], pairs)


def test_what_is_wrong_is_said_at_once() -> None:
    few: Any = {"norm": "model.norm.weight", UP: UP}
    with pytest.raises(InputError, match="nothing names it") as caught:
        weights_for(few, CHECKPOINT)
    assert "model.embed_tokens.weight" in str(caught.value)
    with pytest.raises(InputError, match="is no canonical parameter"):
        weights_for({"x": "model.layers.{i}.mlp.up.weight"}, CHECKPOINT)
    weights = weights_for(llamas.HF_PARAMETERS, CHECKPOINT)
    norm = weights.pop("model.norm.weight")
    weights["model.rms.weight"] = norm
    weights["lm_head.weight"] = weights["lm_head.weight"].T
    wide = "model.layers.0.mlp.up_proj.weight"
    weights[wide] = weights[wide].astype(np.float64)
    model = empty_hf()
    before = model.model.embed_tokens.weight.detach().clone()
    with pytest.raises(InputError) as caught:
        load_into(model, weights)
    for part in (
        "model.norm.weight: the weights lack it",
        "model.rms.weight: LlamaForCausalLM has no such parameter",
        "lm_head.weight: shape (96, 264), the module's is (264, 96)",
        "model.layers.0.mlp.up_proj.weight: float64 would be rounded to float32",
    ):
        assert part in str(caught.value)
    assert torch.equal(model.model.embed_tokens.weight, before)  # none is put in
    with pytest.raises(InputError, match="neither a PyTorch nor an NNX module"):
        load_into(object(), weights)


def test_narrow_weights_go_into_wider_parameters() -> None:
    weights = weights_for(llamas.HF_PARAMETERS, CHECKPOINT, "bf16")
    assert {array.dtype for array in weights.values()} == {np.dtype(ml_dtypes.bfloat16)}
    model = load_into(empty_hf(), weights)
    assert model.lm_head.weight.dtype == torch.float32
