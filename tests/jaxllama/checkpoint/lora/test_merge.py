from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from jaxllama.checkpoint import convert, open_checkpoint, tiny
from jaxllama.checkpoint.lora import merge_lora
from jaxllama.errors import CheckpointError

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
SHAPES = {Q: (96, 96), DOWN: (96, 136)}


def _adapter(directory, factors=None, **settings):
    directory.mkdir()
    rng = np.random.default_rng(5)
    factors = (
        factors
        if factors is not None
        else {
            f"base_model.model.{name}.lora_{key}.weight": rng.standard_normal(shape).astype(
                np.float32
            )
            for name, (rows, columns) in SHAPES.items()
            for key, shape in (("A", (4, columns)), ("B", (rows, 4)))
        }
    )
    safetensors.numpy.save_file(factors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **settings}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return factors


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_merging_adds_scale_times_b_a(tmp_path, rslora, scale):
    base = tiny(num_hidden_layers=2)
    factors = _adapter(tmp_path / "lora", use_rslora=rslora)
    convert(base, tmp_path / "out", to="hf", lora=tmp_path / "lora")
    merged = open_checkpoint(tmp_path / "out")
    for name in base.tensors:
        expected = base.read(name).astype(np.float64)
        module = name.removesuffix(".weight")
        if module in SHAPES:
            b, a = (factors[f"base_model.model.{module}.lora_{k}.weight"] for k in "BA")
            expected = expected + scale * b.astype(np.float64) @ a.astype(np.float64)
            assert np.abs(merged.read(name) - expected).max() < 1e-5
        else:
            assert np.array_equal(merged.read(name), base.read(name))


def test_bfloat16_is_rounded_once(tmp_path):
    base = tiny(num_hidden_layers=2, dtype="bfloat16")
    factors = _adapter(tmp_path / "lora")
    b, a = (factors[f"base_model.model.{Q}.lora_{k}.weight"] for k in "BA")
    expected = (base.read(f"{Q}.weight").astype(np.float32) + b @ a * np.float32(2)).astype(
        base.read(f"{Q}.weight").dtype
    )
    merged = merge_lora(base, tmp_path / "lora").read(f"{Q}.weight")
    assert np.count_nonzero(merged != expected) < 5  # float32 sums may differ in their order


def test_patterns_override_by_module(tmp_path):
    base = tiny(num_hidden_layers=2)
    _adapter(tmp_path / "plain")
    _adapter(tmp_path / "pattern", alpha_pattern={"q_proj": 0})
    plain = merge_lora(base, tmp_path / "plain")
    pattern = merge_lora(base, tmp_path / "pattern")
    assert np.array_equal(pattern.read(f"{Q}.weight"), base.read(f"{Q}.weight"))
    assert np.array_equal(pattern.read(f"{DOWN}.weight"), plain.read(f"{DOWN}.weight"))


def _factor(name, key, shape):
    return {f"base_model.model.{name}.lora_{key}.weight": np.ones(shape, np.float32)}


@pytest.mark.parametrize(
    ("factors", "settings", "match"),
    [
        (None, {"use_dora": True}, "use_dora True means DoRA"),
        (None, {"use_bdlora": {"nblocks": 2}}, "use_bdlora .* means BD-LoRA"),
        (None, {"r": 5}, "lora_A has rank 4, adapter_config.json says 5"),
        (None, {"lora_alpha": "x"}, "lora_alpha 'x' is not a number"),
        ({}, {}, "holds no LoRA factors"),
        (_factor(Q, "A", (4, 96)), {}, "has lora_A alone"),
        (_factor(Q, "A", (4, 96)) | _factor(Q, "B", (95, 4)), {}, r"does not give \(96, 96\)"),
        (_factor("model.layers.9.mlp.up_proj", "A", (4, 96)), {}, "no weight of this model"),
        ({"base_model.model.lm_head.bias": np.ones(3, np.float32)}, {}, "no weight of this model"),
        (
            _factor(Q, "A", (4, 96)) | _factor(Q, "B", (96, 4)) | _factor(DOWN, "A", (4,)),
            {},
            "expected a float matrix",
        ),
    ],
)
def test_adapters_that_do_not_fit(tmp_path, factors, settings, match):
    _adapter(tmp_path / "lora", factors, **settings)
    with pytest.raises(CheckpointError, match=match):
        merge_lora(tiny(num_hidden_layers=2), tmp_path / "lora")


def test_nan_in_a_factor_is_refused(tmp_path):
    factors = _factor(Q, "A", (4, 96)) | _factor(Q, "B", (96, 4))
    next(iter(factors.values()))[2, 3] = np.nan
    _adapter(tmp_path / "lora", factors)
    with pytest.raises(CheckpointError, match="NaN"):
        convert(tiny(num_hidden_layers=2), tmp_path / "out", to="hf", lora=tmp_path / "lora")
    assert not (tmp_path / "out").exists()
