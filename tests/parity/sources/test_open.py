"""parity's own readers: what they take from files that other libraries wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig as HFLlamaConfig
from written_checkpoints import (
    divisors,
    interleaved,
    model,
    weights_of,
    write_all,
    write_gguf,
    write_hf,
    write_meta,
)

from jaxllama.checkpoint import convert, open_checkpoint
from jaxllama.config import RopeScaling
from jaxllama.errors import CheckpointError
from jaxllama.presets import PRESETS
from parity.sources.hf import config_of
from parity.sources.names import in_halves
from parity.sources.open import open_source

FORMATS = ("hf", "meta", "gguf", "orbax")
# What Meta's format has no place for.
SPECIAL = {
    "max_position_embeddings": None,
    "bos_token_id": None,
    "eos_token_ids": (),
    "pad_token_id": None,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(model(), tmp_path_factory.mktemp("written"))


@pytest.mark.parametrize("format", FORMATS)
def test_config_and_weights_are_those_that_were_written(
    format: str, written: dict[str, Path]
) -> None:
    expected, source = model(), open_source(written[format])
    assert source.format == format
    assert source.config == expected.config.replace(**SPECIAL if format == "meta" else {})
    assert list(source.tensors) == list(expected.tensors)
    for name, weight in weights_of(expected).items():
        assert source.tensors[name].shape == weight.shape
        if format == "gguf" and "gate_proj" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            weight = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        assert source.read(name).dtype == weight.dtype
        assert np.array_equal(source.read(name), weight), name


@pytest.mark.parametrize("format", FORMATS)
def test_every_field_has_its_place(format: str, written: dict[str, Path]) -> None:
    stated = open_source(written[format]).stated
    assert set(stated.where) == {*vars(stated)} - {"where"}
    assert all(": " in place for place in stated.where.values())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("to", "dtype"),
    # llama.cpp computes with no float64; beside bfloat16 its norms are kept in float32.
    [*product(FORMATS, ["bfloat16", "float16"]), ("hf", "float64"), ("meta", "float64")],
)
def test_what_jaxllama_converts_is_read_to_the_bit(
    to: str, dtype: str, tied: bool, tmp_path: Path
) -> None:
    checkpoint = model(dtype=dtype, tie_word_embeddings=tied, eos_token_ids=(257, 259))
    path = tmp_path / ("model.gguf" if to == "gguf" else to)
    convert(checkpoint, path, to=to)  # type: ignore[arg-type]
    source = open_source(path)
    assert source.config == checkpoint.config
    assert list(source.tensors) == list(checkpoint.tensors)
    for name, weight in weights_of(checkpoint).items():
        read = source.read(name)
        assert read.dtype == weight.dtype
        assert read.tobytes() == weight.tobytes(), name


def set_fields(**fields: Any) -> Callable[[Path], None]:
    """Return an edit of a config.json."""

    def edit(path: Path) -> None:
        content = json.loads((path / "config.json").read_text())
        content |= fields
        kept = {name: value for name, value in content.items() if value != "absent"}
        (path / "config.json").write_text(json.dumps(kept))

    return edit


LINEAR = {"type": "linear", "factor": 2.5}


@pytest.mark.parametrize(
    "edit",
    [
        set_fields(head_dim="absent"),
        set_fields(head_dim=None, eos_token_id=257, pad_token_id=None),
        set_fields(eos_token_id=None, bos_token_id="absent"),
        set_fields(rope_parameters="absent", rope_theta=1e4, rope_scaling=LINEAR),
        set_fields(rope_parameters="absent", rope_theta=10000, rope_scaling=None),
        set_fields(rope_parameters={"rope_theta": 7e5}),
        set_fields(rope_parameters="absent", rope_scaling={**LINEAR, "rope_theta": 6e5}),
        set_fields(rope_parameters=LINEAR, rope_scaling={**LINEAR, "rope_theta": 6e5}),
        set_fields(rope_parameters={"rope_type": "linear", "factor": 4}, rope_theta=3e4),
    ],
)
def test_spellings_of_config_json(edit: Callable[[Path], None], tmp_path: Path) -> None:
    path = write_hf(model(), tmp_path / "hf")
    edit(path)
    assert open_source(path).config == open_checkpoint(path).config


@pytest.mark.parametrize("name", PRESETS)
def test_published_configs(name: str) -> None:
    assert config_of(PRESETS[name].to_hf(), "config.json").to_llama() == PRESETS[name]


def test_a_config_as_transformers_saves_it(tmp_path: Path) -> None:
    path = write_hf(model(), tmp_path / "hf")
    content = json.loads((path / "config.json").read_text())
    del content["model_type"]
    saved = HFLlamaConfig(**content, architectures=["LlamaForCausalLM"])
    saved.save_pretrained(path)
    assert open_source(path).config == model().config


def test_shards_and_names_without_prefix(tmp_path: Path) -> None:
    path = write_hf(model(), tmp_path / "hf")
    weights = {name.removeprefix("model."): w for name, w in weights_of(model()).items()}
    (path / "model.safetensors").unlink()
    placed = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(weights)}
    for file in set(placed.values()):
        save_file({name: w for name, w in weights.items() if placed[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    source = open_source(path)
    for name, weight in weights_of(model()).items():
        assert np.array_equal(source.read(name), weight)
    assert source.place("model.norm.weight").endswith("safetensors: norm.weight")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_are_joined(ranks: int, tmp_path: Path) -> None:
    """Of four ranks two hold each of the two key heads."""
    checkpoint = model(num_attention_heads=8, head_dim=12)
    if ranks <= 2:
        source = open_source(write_meta(checkpoint, tmp_path / "meta", ranks))
    else:
        convert(checkpoint, tmp_path / "meta", to="meta", shards=ranks)
        source = open_source(tmp_path / "meta")
    for name, weight in weights_of(checkpoint).items():
        assert np.array_equal(source.read(name), weight), name


def test_llama_2s_embedding_is_split_by_columns(tmp_path: Path) -> None:
    path = write_meta(model(), tmp_path / "meta")
    embedding = weights_of(model())["model.embed_tokens.weight"]
    for number, part in enumerate(np.split(embedding, 2, axis=1)):
        file = path / f"consolidated.{number:02}.pth"
        rank = torch.load(file)
        torch.save(rank | {"tok_embeddings.weight": torch.from_numpy(part.copy())}, file)
    params = json.loads((path / "params.json").read_text())
    (path / "params.json").write_text(json.dumps(params | {"vocab_size": -1}))
    source = open_source(path)
    assert np.array_equal(source.read("model.embed_tokens.weight"), embedding)
    assert source.config.vocab_size == len(embedding)


@pytest.mark.parametrize(
    ("theta", "head_dim", "factor"),
    # With theta 2000 the slowest frequency is in the blended band.
    [(5e5, 16, 8.0), (5e5, 128, 32.0), (2000.0, 16, 8.0), (2000.0, 16, 13.0)],
)
def test_llama3s_factor_is_solved(
    theta: float, head_dim: int, factor: float, tmp_path: Path
) -> None:
    scaling = RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    checkpoint = model(rope_theta=theta, head_dim=head_dim, rope_scaling=scaling)
    assert (divisors(theta, head_dim, factor) != factor).any()
    source = open_source(write_gguf(checkpoint, tmp_path / "a.gguf"))
    assert source.config.rope_scaling == scaling


def test_linear_scaling_of_a_gguf(tmp_path: Path) -> None:
    scaling = RopeScaling(kind="linear", factor=2.5)
    convert(model(rope_scaling=scaling), tmp_path / "a.gguf", to="gguf")
    assert open_source(tmp_path / "a.gguf").config.rope_scaling == scaling


def test_rows_of_pairs_become_halves() -> None:
    weight = np.arange(24.0).reshape(12, 2)
    assert np.array_equal(in_halves(interleaved(weight, 2), 2), weight)
    assert not np.array_equal(in_halves(interleaved(weight, 2), 3), weight)


def test_what_cannot_be_read_says_where(tmp_path: Path) -> None:
    path = write_hf(model(), tmp_path / "hf")
    save_file({"model.norm.weight": np.zeros(7, np.float32)}, path / "model.safetensors")
    source = open_source(path)
    with pytest.raises(CheckpointError, match=r"model.norm.weight: shape \(7,\).*\(96,\)"):
        source.read("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"lm_head.weight: cannot be read for the reference"):
        source.read("lm_head.weight")
    (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the reference's own reader does not: no 'hidden"):
        open_source(path)
