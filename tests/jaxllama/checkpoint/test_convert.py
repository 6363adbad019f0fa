from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import jaxllama
from jaxllama.checkpoint import FORMATS, convert, in_memory, open_checkpoint, tiny, verify
from jaxllama.checkpoint.checks import validate
from jaxllama.checkpoint.dtypes import cast
from jaxllama.config import RopeScaling
from jaxllama.dtypes import FLOATS
from jaxllama.errors import CheckpointError, ConfigError, InputError

_LINEAR = RopeScaling(kind="linear", factor=4.0)
MATRIX = {
    "gqa": {},
    "mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_scaling": None},
    "mha": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 24},
}


def _mixed(**overrides):
    """A checkpoint whose tensors have three dtypes, norms among them."""
    plain = tiny(num_hidden_layers=2, **overrides)
    kinds = [FLOATS[name] for name in ("bfloat16", "float16", "float32", "bfloat16", "float32")]
    weights = {n: cast(plain.read(n), kinds[i % 5]) for i, n in enumerate(plain.tensors)}
    companions = {name: read() for name, read in plain.companions.items()}
    return in_memory(plain.config, weights, companions=companions)


@pytest.mark.parametrize("kind", MATRIX)
def test_every_pair_of_formats_keeps_every_bit(kind, tmp_path):
    original = _mixed(**MATRIX[kind])
    for first in FORMATS:
        source = convert(original, tmp_path / first, to=first).target
        assert verify(original, source).equal
        for second in FORMATS:
            target = convert(source, tmp_path / f"{first}-{second}", to=second).target
            result = verify(original, target)
            assert result.equal, (first, second, result.differences[:3], result.config)
            assert open_checkpoint(target).format == second


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shard_counts(shards, tmp_path):
    """Four ranks are more than the two kv heads, so that each of these is stored twice."""
    original = _mixed(num_attention_heads=8, head_dim=12)
    assert original.config.num_key_value_heads == 2
    hf = convert(original, tmp_path / "hf", to="hf", shards=shards).target
    assert len(list(hf.glob("*.safetensors"))) == shards
    meta = convert(hf, tmp_path / "meta", to="meta", shards=shards).target
    assert len(list(meta.glob("consolidated.*.pth"))) == shards
    back = convert(meta, tmp_path / "back", to="hf", shards=shards).target
    assert verify(original, back).equal
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (back / name).read_bytes() == original.companions[name]()


def test_linear_scaling_through_gguf_and_refused_by_meta(tmp_path):
    original = tiny(num_hidden_layers=1, rope_scaling=_LINEAR)
    assert verify(original, convert(original, tmp_path / "a.gguf", to="gguf").target).equal
    with pytest.raises(ConfigError, match="linear"):
        convert(original, tmp_path / "meta", to="meta")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "a.gguf.jaxllama_manifest.json"]


def test_a_round_trip_keeps_the_whole_config(tmp_path):
    """Meta has no place for special tokens: the manifest remembers them."""
    original = tiny(num_hidden_layers=1)
    meta = convert(original, tmp_path / "meta", to="meta").target
    assert open_checkpoint(meta).config == original.config
    (meta / "jaxllama_manifest.json").unlink()
    assert open_checkpoint(meta).config.eos_token_ids == ()


SAID = {
    "initializer_range": 1 / 24,  # which no float32 holds
    "use_cache": False,
    "transformers_version": "4.43.0",
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "sliding_window": None,
    "task_specific_params": {"a": [1, "\u00e9"]},
    "_name_or_path": "someone/llama",
}


def _saying(single, **fields):
    file = single / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return file


@pytest.mark.parametrize("via", FORMATS)
def test_what_config_json_says_besides_is_kept(single, tmp_path, via):
    _saying(single, **SAID, dtype="float16", torch_dtype="float16")
    convert(single, tmp_path / "via", to=via)
    convert(tmp_path / "via", tmp_path / "out", to="hf", dtype="bfloat16")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert SAID.items() <= found.items()
    assert found["dtype"] == found["torch_dtype"] == "bfloat16"
    assert found["architectures"] == ["LlamaForCausalLM"]


def test_what_is_carried_along_changes_no_number(single, tmp_path):
    """Meta's manifest and GGUF's key are read by the same list of fields as config.json."""
    _saying(single, **SAID)
    meta = convert(single, tmp_path / "meta", to="meta").target
    manifest = meta / "jaxllama_manifest.json"
    text = manifest.read_text()
    for wrong in ('"pretraining_tp": 2', '"mystery": 1'):
        manifest.write_text(text.replace('"pretraining_tp": 1', wrong))
        with pytest.raises(ValueError, match=wrong[1:8]):
            open_checkpoint(meta)
    packed = convert(single, tmp_path / "a.gguf", to="gguf").target
    content = packed.read_bytes()
    for wrong in (b'"pretraining_tp": 2', b'"pretraining_xy": 1', b'"rms_norm_eps__": 1'):
        packed.write_bytes(content.replace(b'"pretraining_tp": 1', wrong))
        with pytest.raises(ConfigError, match=f"jaxllama.config_json.*{wrong[1:9].decode()}"):
            open_checkpoint(packed)


def test_public_names_and_progress(tmp_path):
    seen = []
    result = jaxllama.convert("tiny", tmp_path / "out", to="hf", progress=lambda *x: seen.append(x))
    total = tiny().nbytes
    assert {x[2] for x in seen} == {total} == {sum(x[1] for x in seen)} == {result.nbytes}
    assert jaxllama.verify("tiny", tmp_path / "out").equal


def test_cast_is_stated_tensor_by_tensor(tmp_path):
    original = tiny(num_hidden_layers=1)
    result = convert(original, tmp_path / "out", to="hf", dtype="bf16")
    assert set(result.losses) == set(original.tensors)
    name = "model.norm.weight"
    expected = cast(original.read(name), FLOATS["bfloat16"]).astype(np.float32)
    loss, gap = result.losses[name], np.abs(expected - original.read(name))
    assert (loss.changed, loss.size, loss.largest) == (np.count_nonzero(gap), 96, gap.max())
    relative = np.sqrt(np.square(gap, dtype=float).sum() / np.square(original.read(name)).sum())
    assert loss.relative_rms == pytest.approx(relative, rel=1e-6)
    wider = convert(tmp_path / "out", tmp_path / "wide", to="hf", dtype="float32")
    assert not wider.losses


def test_overflowing_cast_is_refused(tmp_path):
    weights = {
        n: tiny(num_hidden_layers=1).read(n).copy() for n in tiny(num_hidden_layers=1).tensors
    }
    weights["model.norm.weight"][3] = 1e6
    bad = in_memory(tiny(num_hidden_layers=1).config, weights)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: .* overflow in float16"):
        convert(bad, tmp_path / "out", to="hf", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_nan_is_refused_with_all_problems_and_nothing_is_left(tmp_path):
    plain = tiny(num_hidden_layers=1)
    weights = {n: plain.read(n).copy() for n in plain.tensors}
    weights["model.norm.weight"][3] = np.nan
    weights["lm_head.weight"][0, 0] = np.inf
    with pytest.raises(CheckpointError) as error:
        convert(in_memory(plain.config, weights), tmp_path / "out", to="hf")
    assert "model.norm.weight" in str(error.value) and "lm_head.weight" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_existing_targets_are_kept_unless_overwritten(tmp_path):
    convert("tiny", tmp_path / "out", to="meta")
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        convert("tiny", tmp_path / "out", to="hf")
    with pytest.raises(InputError, match=r"not replaced \(mine is none of its files\)"):
        convert("tiny", tmp_path / "out", to="hf", overwrite=True)
    assert (tmp_path / "out" / "mine").read_text() == "x"
    (tmp_path / "out" / "mine").unlink()
    convert("tiny", tmp_path / "out", to="hf", overwrite=True)
    validate(open_checkpoint(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_no_checkpoint_is_never_replaced(tmp_path, to):
    mine = [tmp_path / "out" / "mine", tmp_path / "out" / "more" / "config.json", tmp_path / "note"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for target in (tmp_path / "out", tmp_path / "note"):
        with pytest.raises(InputError, match="not a checkpoint and nothing else, so it is not"):
            convert("tiny", target, to=to, overwrite=True)
    assert [path.read_text() for path in mine] == ["x"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note", "out"]


@pytest.mark.parametrize(
    "names",
    [
        ("thesis.tex", "a.gguf"),
        ("arrays/data",),
        ("config.json", "package.json"),
        ("config.json", "model.safetensors", ".git/HEAD"),
        ("params.json",),
    ],
)
def test_what_has_more_than_a_checkpoint_is_kept_whole(tmp_path, names):
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("x")
    with pytest.raises(InputError, match="not a checkpoint and nothing else, so it is not"):
        convert("tiny", tmp_path / "out", to="hf", overwrite=True)
    assert [(tmp_path / "out" / name).read_text() for name in names] == ["x"] * len(names)


@pytest.mark.parametrize("to", FORMATS)
def test_an_empty_directory_and_a_checkpoint_of_any_format_are_replaced(tmp_path, to):
    (tmp_path / "out").mkdir()
    convert("tiny", tmp_path / "out", to=to, overwrite=True)
    convert("tiny", tmp_path / "out", to="hf", overwrite=True)
    assert verify("tiny", tmp_path / "out").equal


def test_a_target_that_holds_its_source_is_refused(tmp_path):
    source = tmp_path / "all" / "source"
    convert("tiny", source, to="hf")
    with pytest.raises(InputError, match="the source, lies in it and would be removed"):
        convert(source, tmp_path / "all", to="meta", overwrite=True)
    assert verify("tiny", source).equal
    convert(source, tmp_path / "all" / "other", to="meta")  # beside it is no harm


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "'onnx': expected one of hf, meta, orbax, gguf"),
        ({"to": "hf", "dtype": "int8"}, "dtype int8: expected one of f64"),
        ({"to": "hf", "shards": 0}, "from 1 to 99"),
        ({"to": "orbax", "shards": 2}, "not for orbax"),
        ({"to": "gguf", "shards": 100}, "from 1 to 99"),
        ({"to": "meta", "shards": 5}, "num_attention_heads 6 by 5"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        convert("tiny", tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_float64_is_kept_and_refused_by_gguf(tmp_path):
    plain = tiny(num_hidden_layers=1)
    wide = in_memory(plain.config, {n: plain.read(n).astype(np.float64) for n in plain.tensors})
    assert verify(wide, convert(wide, tmp_path / "hf", to="hf").target).equal
    with pytest.raises(CheckpointError, match="float64"):
        convert(wide, tmp_path / "a.gguf", to="gguf")


def test_resized_vocabulary_and_tokens_beyond_the_embedding(tmp_path):
    larger = tiny(num_hidden_layers=1, vocab_size=300)
    assert verify(larger, convert(larger, tmp_path / "a.gguf", to="gguf").target).equal
    plain = tiny(num_hidden_layers=1)
    files = {name: read() for name, read in plain.companions.items()}
    content = json.loads(files["tokenizer.json"])
    content["added_tokens"][-1]["id"] = 400
    files["tokenizer.json"] = json.dumps(content).encode()
    weights = {n: plain.read(n) for n in plain.tensors}
    with pytest.raises(CheckpointError, match="token id 400, the embedding 264"):
        convert(in_memory(plain.config, weights, companions=files), tmp_path / "b.gguf", to="gguf")


def test_a_tokenizer_that_is_left_behind_is_said(tmp_path):
    plain = tiny(num_hidden_layers=1)
    assert not convert(plain, tmp_path / "a.gguf", to="gguf").notes
    files = {name: read() for name, read in plain.companions.items()}
    content = json.loads(files["tokenizer.json"])
    content["pre_tokenizer"] = {"type": "Whitespace"}
    files["tokenizer.json"] = json.dumps(content).encode()
    weights = {n: plain.read(n) for n in plain.tensors}
    other = in_memory(plain.config, weights, companions=files)
    (note,) = convert(other, tmp_path / "b.gguf", to="gguf").notes
    assert "tokenizer" in note and "not written" in note
    assert open_checkpoint(tmp_path / "b.gguf").tokenizer_loader is None


def test_disk_full_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    for to in FORMATS:
        with pytest.raises(CheckpointError, match="No space left on device") as error:
            convert("tiny", tmp_path / "out", to=to)
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_unwritable_places_are_one_line(tmp_path, to):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory") as error:
        convert("tiny", tmp_path / "file" / "out", to=to)
    assert "\n" not in str(error.value)


def test_two_writers_of_one_target(tmp_path):
    from jaxllama.checkpoint.staging import Staging

    first = Staging(tmp_path / "out", {}, overwrite=False)
    with pytest.raises(CheckpointError, match="another process is writing it"):
        convert("tiny", tmp_path / "out", to="hf")
    first.discard()
    convert("tiny", tmp_path / "out", to="hf")
