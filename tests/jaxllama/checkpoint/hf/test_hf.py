from __future__ import annotations

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers

from jaxllama.checkpoint import load_model, open_checkpoint, tiny
from jaxllama.checkpoint.hf.write import lay_out_hf
from jaxllama.checkpoint.stream import write_small
from jaxllama.errors import CheckpointError, ConfigError

WEIGHTS = "model.safetensors"


def _header(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _rewrite(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_reads_back_what_was_written(single, sharded):
    expected = tiny(num_hidden_layers=3)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for directory in (single, sharded):
        found = open_checkpoint(directory)
        assert found.config == expected.config
        assert list(found.tensors) == list(expected.tensors)
        for name in expected.tensors:
            np.testing.assert_array_equal(found.read(name), expected.read(name), strict=True)


def test_the_library_reads_what_was_written(single):
    with safetensors.safe_open(single / WEIGHTS, "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(
                file.get_tensor(name), tiny(num_hidden_layers=3).read(name)
            )


def test_bfloat16_keeps_its_bits(tmp_path):
    checkpoint = tiny(dtype="bfloat16", num_hidden_layers=1)
    dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
    write_small(checkpoint, lay_out_hf(checkpoint, dtypes), tmp_path / "out")
    read = open_checkpoint(tmp_path / "out").read("model.embed_tokens.weight")
    assert read.dtype == ml_dtypes.bfloat16
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    bits = model.model.embed_tokens.weight.view(torch.uint16).numpy()
    assert np.array_equal(read.view(np.uint16), bits)


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_logits_equal_transformers(kind, request):
    import jax.numpy as jnp

    directory = request.getfixturevalue(kind)
    model = load_model(open_checkpoint(directory), dtype=np.float64)
    tokens = np.random.default_rng(1).integers(0, 264, (2, 37))
    mask = np.tril(np.ones((2, 37, 37), bool))
    positions = np.tile(np.arange(37), (2, 1))
    ours, _ = model(jnp.asarray(tokens), positions=jnp.asarray(positions), mask=jnp.asarray(mask))
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad():
        reference = theirs(torch.tensor(tokens)).logits.numpy()
    # transformers rounds norms, softmax and rotation to float32 inside.
    assert np.abs(np.asarray(ours) - reference).max() < 1e-4 * np.abs(reference).max()


def test_wrong_permutation_moves_the_logits(single):
    """The negative control of the test above: interleaved q and k load without complaint."""
    import jax.numpy as jnp

    from jaxllama.checkpoint.names import interleave
    from jaxllama.checkpoint.samples import in_memory

    right = open_checkpoint(single)
    weights = {name: right.read(name) for name in right.tensors}
    heads = {"q_proj": 6, "k_proj": 2}
    wrong = {
        name: interleave(w, heads[name.split(".")[-2]])
        if "q_proj" in name or "k_proj" in name
        else w
        for name, w in weights.items()
    }
    tokens = np.arange(40)[None]
    logits = []
    for checkpoint in (right, in_memory(right.config, wrong)):
        model = load_model(checkpoint, dtype=np.float32)
        mask = jnp.tril(jnp.ones((1, 40, 40), bool))
        logits.append(model(jnp.asarray(tokens), positions=jnp.asarray(tokens), mask=mask)[0])
    assert np.abs(np.asarray(logits[0] - logits[1])).max() > 0.1


def test_missing_prefix_is_said(single):
    header, data = _header(single / WEIGHTS)
    _rewrite(single / WEIGHTS, {k.removeprefix("model."): v for k, v in header.items()}, data)
    checkpoint = open_checkpoint(single)
    assert any("prefix" in note for note in checkpoint.notes)
    assert set(checkpoint.tensors) == set(tiny(num_hidden_layers=3).tensors)


@pytest.mark.parametrize("cut", [1, 1000, 200_000])
def test_truncation_names_the_file_and_both_sizes(single, cut):
    file = single / WEIGHTS
    whole = file.stat().st_size
    os.truncate(file, whole - cut)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(single)
    message = _one_line(error)
    assert str(file) in message and str(whole) in message and str(whole - cut) in message


def test_trailing_bytes_are_refused(single):
    with (single / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="too long"):
        open_checkpoint(single)


def _with_offsets(begin, end):
    def change(header):
        header["model.norm.weight"]["data_offsets"] = [begin, end]

    return change


def _with(**fields):
    def change(header):
        header["model.norm.weight"] |= fields

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_offsets(0, 384), "overlaps|leaves a gap"),
        (_with_offsets(10**15, 10**15 + 384), "leaves a gap"),
        (_with_offsets(384, 0), "data_offsets"),
        (_with_offsets(-8, 376), "data_offsets"),
        (_with(shape=[10**12]), "needs 4000000000000"),
        (_with(shape=[1.5]), "not a list of counts"),
        (_with(shape=[96] + [1] * 50), "not a list of counts"),
        (_with(dtype="F31"), "'F31' is not known"),
        (_with(extra=1), "needs exactly"),
    ],
)
def test_damaged_headers_are_refused(single, change, message):
    header, data = _header(single / WEIGHTS)
    change(header)
    _rewrite(single / WEIGHTS, header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(single)
    assert str(single / WEIGHTS) in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (struct.pack("<Q", 2**63), "at most 16777216"),
        (struct.pack("<Q", 16_000_000), "its header alone needs"),
        (struct.pack("<Q", 4) + b"nope", "not valid JSON"),
        (struct.pack("<Q", 4) + b"\xff\xff\xff\xff", "not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "expected an object"),
        (struct.pack("<Q", 90_000) + b"[" * 90_000, "nested too deep"),
        (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "'a' occurs twice"),
        (b"", "0 bytes, shorter"),
    ],
)
def test_no_header(single, head, message):
    (single / WEIGHTS).write_bytes(head)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(single)
    _one_line(error)


def _index(directory):
    path = directory / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("absolute", [False, True])
def test_index_naming_a_file_outside_is_refused(sharded, absolute):
    path, index = _index(sharded)
    shard = index["weight_map"]["model.norm.weight"]
    os.rename(sharded / shard, sharded.parent / shard)
    name = str(sharded.parent / shard) if absolute else f"../{shard}"
    index["weight_map"] = {k: name if v == shard else v for k, v in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the directory"):
        open_checkpoint(sharded)


def test_links_out_of_the_directory_are_refused(single):
    os.rename(single / WEIGHTS, single.parent / "elsewhere")
    os.symlink(single.parent / "elsewhere", single / WEIGHTS)
    with pytest.raises(CheckpointError, match="outside the directory"):
        open_checkpoint(single)


def test_links_within_the_hub_cache_are_followed(single, tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(single.iterdir()):
        os.rename(file, blobs / str(i))
        os.symlink(f"../../blobs/{i}", snapshot / file.name)
    assert open_checkpoint(snapshot).read("model.norm.weight").shape == (96,)


def test_missing_shard_and_disagreeing_index_in_one_line(sharded):
    path, index = _index(sharded)
    shards = sorted(set(index["weight_map"].values()))
    (sharded / shards[0]).unlink()
    stays = next(name for name, shard in index["weight_map"].items() if shard == shards[1])
    index["weight_map"]["model.nowhere.weight"] = shards[1]
    del index["weight_map"][stays]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(sharded)
    message = _one_line(error)
    assert f"{shards[0]}: does not exist" in message
    assert f"{shards[1]}: lacks model.nowhere.weight" in message
    assert f"{shards[1]}: holds {stays}" in message


def test_what_is_no_checkpoint_says_what_it_found(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="it holds nothing"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_config_without_weights(single):
    (single / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        open_checkpoint(single)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"torch_dtype": "float16"}, "config.json: dtype float16 is left, the weights are float32"),
        ({"dtype": "torch.bfloat16"}, "config.json: dtype bfloat16 is left"),
        ({"dtype": "float32"}, ""),
        ({"dtype": "auto"}, ""),
        ({}, ""),
    ],
)
def test_a_dtype_that_no_weight_has_is_said(single, stated, said):
    content = json.loads((single / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):
        content.pop(name, None)
    (single / "config.json").write_text(json.dumps(content | stated))
    notes = [note for note in open_checkpoint(single).notes if "dtype" in note]
    assert len(notes) == bool(said) and said in "".join(notes)


def test_target_that_exists_is_left_alone(single):
    checkpoint = open_checkpoint(single)
    dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
    before = (single / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        write_small(checkpoint, lay_out_hf(checkpoint, dtypes), single)
    assert (single / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in single.parent.iterdir()) == ["single"]
