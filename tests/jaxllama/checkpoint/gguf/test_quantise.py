"""Q8_0 and Q4_0 out and back, their errors stated."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from jaxllama.checkpoint import check_manifest, convert, in_memory, open_checkpoint, tiny, verify
from jaxllama.checkpoint.gguf import quantise as module
from jaxllama.cli import main
from jaxllama.errors import CheckpointError, InputError
from parity.runner.readings import compare_readings
from parity.sources.open import open_source

Q = gguf.GGMLQuantizationType
KIND = {"q8_0": Q.Q8_0, "q4_0": Q.Q4_0}


def evened(**overrides):
    """A model whose rows all divide by 32."""
    sizes = {"num_attention_heads": 8, "head_dim": 12, "intermediate_size": 160}
    return tiny(num_hidden_layers=1, **sizes, **overrides)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", KIND)
def test_out_and_back(asked, dtype, tied, tmp_path):
    source = evened(dtype=dtype, tie_word_embeddings=tied)
    done = convert(source, tmp_path / "a.gguf", to="gguf", quantize=asked)
    back = open_checkpoint(convert(done.target, tmp_path / "hf", to="hf").target)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    for name in source.tensors:
        values, read = source.read(name), back.read(name)
        kind = Q.Q8_0 if name == head else KIND[asked]
        if values.ndim == 1:  # norms, which llama.cpp takes in float32
            assert np.array_equal(read, values) and name not in done.losses
            continue
        wide = values.astype(np.float32)
        assert np.array_equal(read, gguf.dequantize(gguf.quantize(wide, kind), kind)), name
        error, loss = read.astype(np.float64) - wide, done.losses[name]
        assert loss.largest == np.abs(error).max()
        relative = np.sqrt((error**2).sum() / (wide.astype(np.float64) ** 2).sum())
        assert loss.relative_rms == pytest.approx(relative, rel=1e-9)
        assert 1e-3 < relative < (0.01 if kind is Q.Q8_0 else 0.12)
        assert done.encodings[name] == kind.name
    check_manifest(open_checkpoint(done.target))
    assert not verify(source, done.target).equal
    stored = {t.name: int(t.n_bytes) for t in gguf.GGUFReader(done.target).tensors}
    del stored["rope_freqs.weight"]
    norms = sum(size for name, size in stored.items() if "norm" in name)
    counted = norms // 2 if dtype == "bfloat16" else norms  # which are widened
    assert done.nbytes == sum(stored.values()) - norms + counted


@pytest.mark.parametrize("asked", KIND)
def test_foreign_readers(asked, tmp_path):
    source = evened()
    target = convert(source, tmp_path / "out", to="gguf", quantize=asked, shards=2).target
    assert not compare_readings(open_checkpoint(target), open_source(target)).differences
    reader = gguf.GGUFReader(target / "model-00001-of-00002.gguf")
    keys = {key: reader.fields[f"general.{key}"].contents() for key in ("file_type",)}
    keys["version"] = reader.fields["general.quantization_version"].contents()
    expected = gguf.LlamaFileType[f"MOSTLY_{asked.upper()}"]
    assert keys == {"file_type": expected, "version": gguf.GGML_QUANT_VERSION}
    kinds = {t.name: t.tensor_type for t in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == Q.F32
    assert kinds["blk.0.attn_q.weight"] == KIND[asked]


def test_rows_that_do_not_divide_are_kept_and_said(tmp_path):
    source, kept = tiny(num_hidden_layers=2), "model.layers.0.mlp.down_proj.weight"
    done = convert(source, tmp_path / "a.gguf", to="gguf", quantize="q8_0")
    assert done.notes == (
        f"2 tensors keep their dtype, since 32 does not divide their rows: {kept} has rows of 136",
    )
    assert kept not in done.encodings
    read = open_checkpoint(done.target)
    assert np.array_equal(read.read(kept), source.read(kept))
    assert read.tensors[kept].encoding == "F32"


def test_what_overflows_is_refused(tmp_path):
    plain = evened()
    weights = {name: plain.read(name).copy() for name in plain.tensors}
    weights["lm_head.weight"][0, 0] = 1e7  # / 127 is no float16
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight: values up to 1e\+07 overflow in Q8"
    ):
        convert(in_memory(plain.config, weights), tmp_path / "a.gguf", to="gguf", quantize="q8_0")
    weights["lm_head.weight"][0, 0] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        convert(in_memory(plain.config, weights), tmp_path / "a.gguf", to="gguf", quantize="q8_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6, 1.0, 1e5])
@pytest.mark.parametrize("kind", KIND.values())
def test_what_is_written_is_what_was_measured(kind, scale):
    """A tensor is quantised to be measured, and once more to be written: the same, or 0 is 0."""
    values = np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32) * np.float32(
        scale
    )
    once = module.Quantisation({"a": kind})("a", values, values.dtype)
    twice = gguf.dequantize(module.quantise(once, kind), kind)
    assert np.array_equal(once, twice)


def test_a_wrong_quantiser_would_show(tmp_path, monkeypatch):
    """Were other bytes written than measured, the manifest would tell."""
    right = module.quantise
    monkeypatch.setattr("jaxllama.checkpoint.gguf.write.quantise", lambda v, e: right(v * 1.5, e))
    done = convert(evened(), tmp_path / "a.gguf", to="gguf", quantize="q8_0")
    with pytest.raises(CheckpointError, match="changed since its manifest"):
        check_manifest(open_checkpoint(done.target))


def test_other_encodings_and_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match="'q5_k': expected one of q8_0, q4_0"):
        convert("tiny", tmp_path / "a.gguf", to="gguf", quantize="q5_k")
    with pytest.raises(InputError, match="for gguf alone, not for hf"):
        convert("tiny", tmp_path / "a", to="hf", quantize="q8_0")
    assert not list(tmp_path.iterdir())


def test_the_command_says_errors_and_perplexity(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 3)
    arguments = ["convert", "tiny", "--to", "gguf", "--quiet", "--perplexity", str(text)]
    found = {}
    for asked in KIND:
        with pytest.raises(SystemExit) as end:
            main([*arguments, str(tmp_path / f"{asked}.gguf"), "--quantize", asked, "--json"])
        assert end.value.code == 0
        found[asked] = json.loads(capsys.readouterr().out)
    q8, q4 = (found[asked]["perplexity"] for asked in KIND)
    assert q8["tokens"] == q4["tokens"] and q8["source"] == q4["source"]
    assert abs(q8["target"] - q8["source"]) < abs(q4["target"] - q4["source"])
    row = found["q4_0"]["tensors"]["model.layers.0.self_attn.q_proj.weight"]
    assert row["encoding"] == "Q4_0" and 0.05 < row["relative_rms"] < 0.12 and row["largest"] > 0
    assert found["q4_0"]["tensors"]["model.norm.weight"] == {"encoding": None, "changed": 0}
    with pytest.raises(SystemExit):
        main(["convert", "tiny", str(tmp_path / "b.gguf"), "--to", "gguf", "--quantize", "q8_0"])
    out = capsys.readouterr().out
    assert out.count("quantised: ") == 32 and "worst: " in out and "32 tensors quantised" in out
    with pytest.raises(SystemExit) as end:
        main([*arguments[:-1], str(tmp_path / "none"), str(tmp_path / "c.gguf")])
    assert end.value.code == 2 and not (tmp_path / "c.gguf").exists()
