from __future__ import annotations

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from jaxllama.checkpoint import convert, open_checkpoint, tiny, validate, verify
from jaxllama.errors import CheckpointError

FILE = "consolidated.00.pth"


@pytest.fixture
def directory(tmp_path):
    return convert(tiny(num_hidden_layers=2), tmp_path / "meta", to="meta").target


@pytest.fixture
def four(tmp_path):
    source = tiny(num_hidden_layers=1, num_attention_heads=8, head_dim=12)
    return convert(source, tmp_path / "meta", to="meta", shards=4).target


def _state(path):
    return torch.load(path, weights_only=True)


def _refused(directory, match) -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        validate(open_checkpoint(directory))
    return str(error.value)


def test_files_are_what_pytorch_would_write(directory, tmp_path):
    """Written by planning: the same tensors, and PyTorch's own writer reads the same back."""
    state = _state(directory / FILE)
    torch.save(state, tmp_path / "again.pth")
    again = _state(tmp_path / "again.pth")
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    with zipfile.ZipFile(directory / FILE) as ours, zipfile.ZipFile(tmp_path / "again.pth") as own:
        assert sorted(n.split("/", 1)[1] for n in ours.namelist()) == sorted(
            n.split("/", 1)[1] for n in own.namelist()
        )


def test_reads_what_pytorch_wrote(directory, tmp_path):
    state = _state(directory / FILE)
    torch.save(state, directory / FILE)
    assert verify(tiny(num_hidden_layers=2), directory).equal


def test_code_in_a_pickle_is_refused_and_not_run(directory, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"tok_embeddings.weight": Evil()}, directory / FILE)
    message = _refused(directory, "holds more than tensors")
    assert "\n" not in message and not (tmp_path / "ran").exists()
    (directory / FILE).write_bytes(pickle.dumps(Evil()))
    _refused(directory, "not in PyTorch's zip format")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.zeros(3)], "holds a list"),
        ({"norm.weight": 3}, "'norm.weight' is a int"),
        ({3: torch.zeros(3)}, "'3' is a Tensor"),
        ({"norm.weight": torch.zeros(3).to_sparse()}, "not a plain contiguous tensor"),
        ({"norm.weight": torch.zeros(1).expand(10**12)}, "not a plain contiguous tensor"),
        ({"norm.weight": torch.zeros(2, 3).T}, "not a plain contiguous tensor"),
    ],
)
def test_other_contents_are_refused(directory, content, match):
    torch.save(content, directory / FILE)
    _refused(directory, match)


def test_truncated_file(directory):
    length = (directory / FILE).stat().st_size
    os.truncate(directory / FILE, length // 2)
    message = _refused(directory, f"{length // 2} bytes, truncated")
    assert str(directory / FILE) in message and "\n" not in message


def test_compressed_archive_is_refused(directory):
    """A small file that unpacks to gigabytes must not be unpacked."""
    with zipfile.ZipFile(directory / FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 24))
    _refused(directory, "is compressed")


def test_shards_that_do_not_fit(four):
    os.rename(four / "consolidated.02.pth", four / "consolidated.05.pth")
    _refused(four, "without gaps")
    os.rename(four / "consolidated.05.pth", four / "consolidated.02.pth")
    state = _state(four / "consolidated.02.pth")
    state["norm.weight"] = state["norm.weight"][:-1].clone()
    del state["layers.0.attention.wq.weight"]
    torch.save(state, four / "consolidated.02.pth")
    message = _refused(four, "2 problems")
    assert "norm.weight: ((96,)" in message.replace("consolidated", "\n")
    assert "layers.0.attention.wq.weight: in consolidated.00.pth, not in" in message


@pytest.mark.parametrize("name", ["layers.0.attention.wk.weight", "norm.weight"])
def test_replicas_that_differ_are_refused(four, name):
    state = _state(four / "consolidated.01.pth")
    state[name] = state[name] + 1
    torch.save(state, four / "consolidated.01.pth")
    _refused(four, f"{name} differs from consolidated.00.pth")


def test_embedding_split_by_columns_as_in_llama_2(tmp_path):
    source = tiny(num_hidden_layers=1)
    directory = convert(source, tmp_path / "meta", to="meta", shards=2).target
    embedding = torch.tensor(source.read("model.embed_tokens.weight"))
    for rank in range(2):
        state = _state(directory / f"consolidated.{rank:02}.pth")
        state["tok_embeddings.weight"] = embedding[:, rank * 48 : rank * 48 + 48].clone()
        torch.save(state, directory / f"consolidated.{rank:02}.pth")
    assert verify(source, directory).equal


def test_old_frequencies_are_ignored_and_said(directory):
    state = _state(directory / FILE) | {"rope.freqs": torch.zeros(8)}
    torch.save(state, directory / FILE)
    checkpoint = open_checkpoint(directory)
    validate(checkpoint)
    assert any("rope.freqs is ignored" in note for note in checkpoint.notes)


def test_manifest_of_another_model_is_refused(directory):
    params = json.loads((directory / "params.json").read_text())
    params["rope_theta"] = 1e4
    (directory / "params.json").write_text(json.dumps(params))
    _refused(directory, "describe different models")


def test_wrong_permutation_is_seen(directory):
    """Negative control: rows half-split as they are in HF, where Meta has them interleaved."""
    state = _state(directory / FILE)
    source = tiny(num_hidden_layers=2)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(state["layers.0.attention.wq.weight"].numpy(), source.read(name))
    state["layers.0.attention.wq.weight"] = torch.tensor(source.read(name))
    torch.save(state, directory / FILE)
    (difference,) = verify(source, directory).differences
    assert difference.explanation.startswith("rows half-split by its 6 heads")
