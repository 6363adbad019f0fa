from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from witnesses import changed, inputs_for, on_disk, small, whole, worst

from jaxllama.errors import CheckpointError, InputError
from parity.subjects.hf.subject import HFLlama, attention_mask, mask_as_bool


def test_a_missing_transformers_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "parity.subjects.hf.subject")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers.*pip install 'jaxllama\[parity\]'"):
        importlib.import_module("parity.subjects.hf.subject")


def test_a_directory_is_loaded_by_transformers_itself(tmp_path: Path) -> None:
    checkpoint = small(dtype="bfloat16")
    inputs = inputs_for(checkpoint, "causal")
    memory = whole(HFLlama(checkpoint, dtype="f64"), inputs)
    stored = on_disk(checkpoint, tmp_path)
    assert worst(memory, whole(HFLlama(stored, dtype="f64"), inputs), inputs) == 0
    # Negative control: what counts is the file, not what jaxllama read of it.
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"] * weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert worst(memory, whole(HFLlama(stored, dtype="f64"), inputs), inputs) > 1e-3


def test_weights_it_would_make_up_are_an_error(tmp_path: Path) -> None:
    checkpoint = small()

    def drop(weights: dict[str, np.ndarray]) -> None:
        del weights["model.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
        weights["model.layers.9.norm"] = np.ones(3, np.float32)

    for broken in (changed(checkpoint, drop), on_disk(changed(checkpoint, drop), tmp_path)):
        with pytest.raises(CheckpointError, match="3 problems") as error:
            HFLlama(broken, dtype="f32")
        for name in ("layers.1.mlp.up_proj", "lm_head", "layers.9.norm"):
            assert name in str(error.value)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_its_frequencies_stay_float32(dtype: str) -> None:
    checkpoint = small()
    taps = whole(HFLlama(checkpoint, dtype=dtype), inputs_for(checkpoint, "causal"))
    assert taps["rope.inv_freq"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "dtype", "dimensions"),
    [
        ("causal", torch.float64, 2),
        ("right_padded", torch.float64, 2),
        ("left_padded", torch.float32, 2),
        ("left_padded", torch.float64, 4),  # its own fill is -inf to its float32 softmax
        ("mixed_lengths", torch.bfloat16, 2),
        ("packed", torch.float32, 4),
        ("windowed", torch.float32, 4),
    ],
)
def test_it_builds_its_own_mask_where_it_can(
    name: str, dtype: torch.dtype, dimensions: int
) -> None:
    inputs = inputs_for(small(), name)
    mask = attention_mask(inputs, 5, 17, dtype)
    assert mask.ndim == dimensions
    if dimensions == 4:
        assert mask.shape == (len(inputs.tokens), 1, 12, 17)
        np.testing.assert_array_equal(mask_as_bool(mask, len(mask)), inputs.mask[:, 5:17, :17])
    else:
        assert mask.shape == (len(inputs.tokens), 17)


def test_the_mask_shown_is_the_one_its_layers_got() -> None:
    # A causal mask of its own making, over all rows; a pad's own row may see earlier tokens.
    checkpoint = small()
    inputs = inputs_for(checkpoint, "right_padded")
    taps = whole(HFLlama(checkpoint, dtype="f32"), inputs)
    pads = ~inputs.valid
    assert pads.any()
    assert taps["mask"][pads].any()
    np.testing.assert_array_equal(taps["mask"][inputs.valid], inputs.mask[inputs.valid])
