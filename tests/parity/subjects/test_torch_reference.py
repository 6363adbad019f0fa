from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from witnesses import (
    GQA,
    LAYERS,
    LINEAR,
    LLAMA3,
    changed,
    first_apart,
    inputs_for,
    on_disk,
    small,
    swap,
    whole,
    worst,
)

from jaxllama.checkpoint.samples import in_memory
from jaxllama.errors import CheckpointError, InputError
from jaxllama.rope import inv_freq
from parity.subjects.torch.weights import (
    HeldWeights,
    TorchWeights,
    weights_for_decode,
    weights_for_model,
)
from parity.subjects.torch_reference.subject import TorchReference

DTYPES = {"f64": np.float64, "f32": np.float32, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("variant", ["reordered", "sdpa", "doubled"])
def test_variants_differ_by_rounding_alone(variant: str) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "left_padded")
    eager = whole(TorchReference(checkpoint), inputs)
    subject = TorchReference(checkpoint, variant=variant)
    other = whole(subject, inputs)
    absent = {name for name in eager if name not in other}
    assert {name.replace(f".{i}", "") for i in range(LAYERS) for name in absent} >= subject.absent
    assert bool(absent) == bool(subject.absent) == (variant == "sdpa")
    eager = {name: value for name, value in eager.items() if name in other}
    assert worst(eager, other, inputs) < 1e-12
    if variant == "reordered":  # otherwise it would measure no noise
        assert any((eager[name] != other[name]).any() for name in eager)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_dtypes_are_the_lanes_and_logits_are_wide(dtype: str) -> None:
    checkpoint = small()
    taps = whole(TorchReference(checkpoint, dtype=dtype), inputs_for(checkpoint, "causal"))
    assert taps["embed"].dtype == taps["layers.1.k_rope"].dtype == DTYPES[dtype]
    wide = np.float64 if dtype == "f64" else np.float32
    assert taps["logits"].dtype == taps["layers.0.attn_probs"].dtype == wide
    assert taps["positions"].dtype == np.int32
    assert taps["mask"].dtype == np.bool_


def test_lower_precision_is_near_but_not_equal() -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "packed")
    reference = whole(TorchReference(checkpoint), inputs)
    for dtype, least, most in (("f32", 1e-9, 1e-4), ("bf16", 1e-4, 0.3)):
        gap = worst(reference, whole(TorchReference(checkpoint, dtype=dtype), inputs), inputs)
        assert least < gap < most


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3])
def test_frequencies_agree_with_the_model_under_test(scaling: object) -> None:
    checkpoint = small(scaling=scaling)
    ours = TorchReference(checkpoint).inv_freq().numpy()
    np.testing.assert_allclose(ours, inv_freq(checkpoint.config), rtol=1e-14)


def test_a_row_that_sees_nothing_gets_zeros() -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "left_padded")
    for variant in ("eager", "sdpa"):
        taps = whole(TorchReference(checkpoint, variant=variant), inputs)
        empty = taps["layers.0.attn_context"][~inputs.valid]
        assert empty.size
        assert not empty.any()


class OtherTheta(TorchReference):
    def inv_freq(self) -> torch.Tensor:
        return TorchReference(
            self.weights._checkpoint, config=self.config.replace(rope_theta=1e6)
        ).inv_freq()


class TiledHeads(TorchReference):
    def kv_head_of_query(self) -> torch.Tensor:
        return torch.arange(self.config.num_attention_heads) % self.config.num_key_value_heads


class NoScale(TorchReference):
    def scale(self) -> float:
        return 1.0


class SeesEverything(TorchReference):
    def probs(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return scores.softmax(-1)


class OtherEps(TorchReference):
    def rms_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        right, self.config = self.config, self.config.replace(rms_norm_eps=0.1)
        normed = super().rms_norm(x, name)
        self.config = right
        return normed


@pytest.mark.parametrize(
    ("wrong", "tap"),
    [
        (OtherTheta, "rope.inv_freq"),
        (TiledHeads, "layers.0.attn_scores"),
        (NoScale, "layers.0.attn_scores"),
        (SeesEverything, "layers.0.attn_probs"),
        (OtherEps, "layers.0.input_layernorm"),
    ],
)
def test_an_overridden_operator_is_wrong_from_its_own_tap_on(
    wrong: type[TorchReference], tap: str
) -> None:
    checkpoint = small(GQA)
    inputs = inputs_for(checkpoint, "causal")
    right = whole(TorchReference(checkpoint), inputs)
    assert first_apart(right, whole(wrong(checkpoint), inputs), inputs, 1e-9) == tap


@pytest.mark.parametrize(
    ("a", "b", "tap"),
    [
        ("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", "layers.1.gate_proj"),
        ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.0.q_proj"),
        ("norm", "layers.2.input_layernorm", "layers.2.input_layernorm"),
    ],
)
def test_swapped_weights_show_at_the_first_tap_that_uses_them(a: str, b: str, tap: str) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "causal")
    wrong = changed(checkpoint, swap(f"model.{a}.weight", f"model.{b}.weight"))
    right = whole(TorchReference(checkpoint), inputs)
    assert first_apart(right, whole(TorchReference(wrong), inputs), inputs, 1e-9) == tap


def test_a_config_of_its_own_overrides_the_checkpoints() -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "causal")
    right = whole(TorchReference(checkpoint), inputs)
    other = TorchReference(checkpoint, config=checkpoint.config.replace(rms_norm_eps=0.1))
    assert first_apart(right, whole(other, inputs), inputs, 1e-9) == "layers.0.input_layernorm"


@pytest.mark.ill_typed
def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"variant 'fused': expected one of eager, .*doubled"):
        TorchReference(small(), variant="fused")  # type: ignore[arg-type]


def test_weights_of_a_directory_are_read_without_jaxllama(tmp_path: Path) -> None:
    checkpoint = small(dtype="bfloat16")
    stored = on_disk(checkpoint, tmp_path)

    def refuse(name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read by jaxllama")

    weights = TorchWeights(dataclasses.replace(stored, reader=refuse))
    for name in checkpoint.tensors:
        assert weights[name].dtype == torch.bfloat16
        expected = checkpoint.read(name).view(np.int16)
        np.testing.assert_array_equal(weights[name].view(torch.int16).numpy(), expected)
    assert "lm_head.weight" in weights
    assert "lm_head.bias" not in weights
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.7\.mlp\.up_proj\.weight"):
        weights["model.layers.7.mlp.up_proj.weight"]


def test_the_head_is_rounded_like_every_other_weight() -> None:
    checkpoint = small()  # float32
    weights = {n: checkpoint.read(n).astype(ml_dtypes.bfloat16) for n in checkpoint.tensors}
    rounded = in_memory(checkpoint.config, weights)
    inputs = inputs_for(checkpoint, "causal")
    taps = [whole(TorchReference(c, dtype="bf16"), inputs) for c in (checkpoint, rounded)]
    assert worst(*taps, inputs) == 0


def test_decoding_holds_a_small_models_weights_and_shares_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = small()
    one, other = (
        weights_for_decode(checkpoint, torch.float64),
        weights_for_decode(checkpoint, torch.float64),
    )
    assert isinstance(one, HeldWeights)
    assert one is other
    assert one is not weights_for_decode(checkpoint, torch.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    assert one[name] is one[name]
    assert one[name].dtype == torch.float64
    assert name in one
    monkeypatch.setattr("parity.subjects.torch.weights.HELD_BYTES", 1000)
    assert isinstance(weights_for_decode(checkpoint, torch.float64), TorchWeights)


def test_models_share_the_weights_that_are_the_same_to_the_bit() -> None:
    checkpoint = small(tied=False)
    shared = weights_for_model(checkpoint, torch.float32)
    names = ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"]
    same, signed, wide = (torch.nn.Parameter(shared[name].clone()) for name in names)
    signed.data[0, 0], shared[names[1]][0, 0] = -0.0, 0.0
    wide.data = wide.data.double()
    module = Named(dict(zip(names, (same, signed, wide), strict=True)))
    before = same.data_ptr(), signed.data_ptr(), wide.data_ptr()
    shared.share(module)
    assert same.data_ptr() == shared[names[0]].data_ptr() != before[0]
    assert (signed.data_ptr(), wide.data_ptr()) == before[1:]


class Named(torch.nn.Module):
    """Has parameters under given names, dots and all."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.held = parameters

    def named_parameters(self, *_: object, **__: object) -> Iterator[tuple[str, Any]]:
        yield from self.held.items()


def test_a_directory_gives_the_same_bits_as_memory(tmp_path: Path) -> None:
    checkpoint = small(tied=True)
    inputs = inputs_for(checkpoint, "causal")
    memory = whole(TorchReference(checkpoint, dtype="f32"), inputs)
    disk = whole(TorchReference(on_disk(checkpoint, tmp_path), dtype="f32"), inputs)
    assert worst(memory, disk, inputs) == 0


def test_shards_below_the_directory_are_found_and_a_single_file_goes_first(tmp_path: Path) -> None:
    checkpoint = on_disk(small(), tmp_path)
    name = "model.norm.weight"
    expected = TorchWeights(checkpoint)[name]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "parts/one.safetensors"}}))
    assert torch.equal(TorchWeights(checkpoint)[name], expected)
    (tmp_path / "parts").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "parts" / "one.safetensors")
    assert torch.equal(TorchWeights(checkpoint)[name], expected)
    index.write_text(json.dumps({"weight_map": {name: "../one.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside the directory"):
        TorchWeights(checkpoint)
