from __future__ import annotations

import json
import os
import struct

import gguf
import numpy as np
import pytest

from jaxllama.checkpoint import open_checkpoint, tiny, validate
from jaxllama.checkpoint.gguf import file as gguf_file
from jaxllama.checkpoint.gguf.file import read_head
from jaxllama.checkpoint.names import entry_of, heads_of, interleave, to_dialect
from jaxllama.errors import CheckpointError

_Q = gguf.GGMLQuantizationType


def _write(path, checkpoint, encode=None, extra=None, tokenizer=None):
    """Write a GGUF file with the format's own library, as llama.cpp's converter does."""
    writer = gguf.GGUFWriter(path, "llama")
    config = checkpoint.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    if tokenizer:
        tokenizer(writer)
    if config.rope_scaling:
        half = config.head_dim // 2
        unscaled = config.rope_theta ** -(np.arange(half) / half)
        factors = config.rope_scaling.frequency_factors(unscaled)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    for name in checkpoint.tensors:
        values = checkpoint.read(name)
        entry = entry_of(name)
        if entry.rotary:
            values = interleave(values, heads_of(entry, config))
        kind = encode(name) if encode and values.ndim > 1 else None
        stored = to_dialect(name, "gguf")
        if kind is None:
            writer.add_tensor(stored, values)
        else:
            data = gguf.quantize(values, kind)
            writer.add_tensor(stored, data, raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def small():
    return tiny(num_hidden_layers=2)


def test_float32_is_read_bit_for_bit(tmp_path, small):
    _write(tmp_path / "a.gguf", small)
    found = open_checkpoint(tmp_path / "a.gguf")
    assert found.config.rope_scaling == small.config.rope_scaling
    validate(found)
    for name in small.tensors:
        np.testing.assert_array_equal(found.read(name), small.read(name), strict=True)


def test_permutation_is_undone_by_each_ones_own_head_count(tmp_path, small):
    """Negative control: with k's rows ordered by q's heads the weights differ."""
    _write(tmp_path / "a.gguf", small)
    name = "model.layers.0.self_attn.k_proj.weight"
    raw = read_head(tmp_path / "a.gguf").read("blk.0.attn_k.weight")
    assert not np.array_equal(raw, small.read(name))
    assert np.array_equal(raw, interleave(small.read(name), 2))
    assert not np.array_equal(raw, interleave(small.read(name), 4))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_encoding_is_what_the_library_reads(tmp_path, kind):
    checkpoint = tiny(num_hidden_layers=1, intermediate_size=160, vocab_size=288)
    encoding = _Q[kind]
    _write(tmp_path / "a.gguf", checkpoint, encode=lambda name: encoding)
    found = open_checkpoint(tmp_path / "a.gguf")
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for name in checkpoint.tensors:
        ours = found.read(name)
        tensor = theirs[to_dialect(name, "gguf")]
        entry = entry_of(name)
        reference = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        if entry.rotary:
            ours = interleave(ours, heads_of(entry, found.config))
        assert np.array_equal(ours.astype(np.float32), reference)
    expected = {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    assert found.tensors["lm_head.weight"].dtype == expected == found.read("lm_head.weight").dtype


def test_k_quants_are_read(tmp_path):
    """Blocks of 256: sizes to match, bytes at random, since the library only reads these."""
    checkpoint = tiny(
        num_hidden_layers=1,
        hidden_size=256,
        head_dim=64,
        num_attention_heads=4,
        intermediate_size=512,
    )
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    rng = np.random.default_rng(0)
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"):
        block, size = gguf.GGML_QUANT_SIZES[_Q[kind]]
        data = rng.integers(0, 30, (3, 512 // block * size), np.uint8)
        writer.add_tensor(kind, data, raw_dtype=_Q[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_head(path)
    for tensor in gguf.GGUFReader(path).tensors:
        ours = file.read(tensor.name)
        assert ours.shape == (3, 512)
        assert np.array_equal(ours, gguf.dequantize(tensor.data, tensor.tensor_type))
    assert checkpoint.config.head_dim == 64


def test_large_tensors_are_dequantised_in_blocks(tmp_path, monkeypatch):

    checkpoint = tiny(num_hidden_layers=1)
    _write(tmp_path / "a.gguf", checkpoint, encode=lambda n: _Q.Q8_0 if "lm_head" in n else None)
    whole = open_checkpoint(tmp_path / "a.gguf").read("lm_head.weight")
    monkeypatch.setattr(gguf_file, "_BLOCK_BYTES", 4 * 96 * 7)
    assert np.array_equal(open_checkpoint(tmp_path / "a.gguf").read("lm_head.weight"), whole)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01, 0.001])
def test_truncation_names_the_file_and_both_sizes(tmp_path, small, keep):
    path = tmp_path / "a.gguf"
    _write(path, small)
    length = int(path.stat().st_size * keep)
    os.truncate(path, length)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert str(path) in message and f"the file has {length}" in message and "\n" not in message


def _patched(data: bytes, at: int, value: int, layout: str = "<Q") -> bytes:
    raw = struct.pack(layout, value)
    return data[:at] + raw + data[at + len(raw) :]


@pytest.mark.parametrize(
    ("at", "value", "layout", "message"),
    [
        (0, 0, "<I", "not a GGUF file"),
        (4, 0x03000000, "<I", "big-endian"),
        (4, 1, "<I", "GGUF version 1"),
        (8, 2**60, "<Q", "count of tensors is"),
        (16, 2**60, "<Q", "count of metadata keys is"),
        (24, 2**63, "<Q", "length of a metadata key is"),
    ],
)
def test_damaged_heads_are_refused(tmp_path, small, at, value, layout, message):
    path = tmp_path / "a.gguf"
    _write(path, small)
    path.write_bytes(_patched(path.read_bytes(), at, value, layout))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_unknown_architecture_and_keys_are_refused(tmp_path):
    from jaxllama.errors import ConfigError

    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_tensor("token_embd.weight", np.zeros((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="gemma"):
        open_checkpoint(path)


def test_unexpected_tensor_is_refused_on_validation(tmp_path, small):
    _write(tmp_path / "a.gguf", small, extra={"blk.0.attn_q.bias": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.bias: unexpected"):
        validate(open_checkpoint(tmp_path / "a.gguf"))


def _llama_bpe(writer):
    spelled = json.loads(tiny().companions["tokenizer.json"]())["model"]["vocab"]
    tokens = [*sorted(spelled, key=lambda token: spelled[token]), "th", "the", "12"]
    tokens += ["<|begin|>", "<|end|>", "<|tool|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 4])
    writer.add_token_merges(["t h", "th e", "1 2"])
    writer.add_bos_token_id(259)
    writer.add_eos_token_id(260)
    writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}")


def test_llama_bpe_tokenizer(tmp_path, small):
    _write(tmp_path / "a.gguf", small, tokenizer=_llama_bpe)
    tokenizer = open_checkpoint(tmp_path / "a.gguf").tokenizer()
    text = "the 12<|end|>the<|tool|> naïve\n"
    ids = tokenizer.encode(text)
    assert ids[:5] == [259, 257, 32, 258, 260]
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.encode("<|end|>", specials=False, bos=False) == list(b"<|end|>")
    assert tokenizer.render_chat([{"role": "user", "content": "a & b"}]) == "<|begin|>a & b"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (259, (260,), 262)


def test_unknown_tokenizer_is_refused_when_it_is_asked_for(tmp_path, small):
    def sentencepiece(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["a"])

    _write(tmp_path / "a.gguf", small, tokenizer=sentencepiece)
    checkpoint = open_checkpoint(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match="tokenizer model 'llama'"):
        checkpoint.tokenizer()
