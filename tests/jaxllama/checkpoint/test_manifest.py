"""What a manifest proves: everything that decides an answer is as it was written."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from jaxllama.checkpoint import FORMATS, check_manifest, convert, load_model, open_checkpoint
from jaxllama.checkpoint.manifest import MANIFEST
from jaxllama.cli import main
from jaxllama.errors import CheckpointError

SETTINGS = {
    "tokenizer_config.json": '{"chat_template": "{{ messages }}"}',
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": '{"temperature": 0.6}',
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint with every file that can lie beside weights, in every format."""
    root = tmp_path_factory.mktemp("written")
    source = convert("tiny", root / "source", to="hf").target
    for name, text in SETTINGS.items():
        if not (source / name).exists():
            (source / name).write_text(text)
    for to in FORMATS:
        convert(source, root / to, to=to)
    return root


@pytest.fixture
def copied(written, tmp_path):
    return lambda to: shutil.copytree(written / to, tmp_path / to)


def _refused(path, match):
    with pytest.raises(CheckpointError, match=match):
        check_manifest(open_checkpoint(path))
    with pytest.raises(CheckpointError):
        load_model(path, dtype="float32", check_digests=True)


def _beside(path):
    return sorted(
        file.name
        for file in path.iterdir()
        if file.is_file() and file.suffix not in (".safetensors", ".pth") and file.name != MANIFEST
    )


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_as_it_was_is_equal(copied, to):
    path = copied(to)
    assert check_manifest(open_checkpoint(path)) == []
    recorded = json.loads((path / MANIFEST).read_text())
    assert recorded["version"] == 2
    if to == "gguf":
        assert len(recorded["heads"]) == 1 and not recorded["files"]
    else:
        assert sorted(recorded["files"]) == _beside(path) and not recorded["heads"]
        assert {"tokenizer.json", *SETTINGS} < set(recorded["files"])


@pytest.mark.parametrize("to", ["hf", "meta", "orbax"])
def test_each_file_changed_or_missing_is_named(copied, to):
    path = copied(to)
    for name in _beside(path):
        content = (path / name).read_bytes()
        # A space more is no other setting, but was not written so.
        (path / name).write_bytes(content + b" ")
        _refused(path, rf"{name}: was changed: digest")
        if name not in ("config.json", "params.json"):
            (path / name).unlink()
            _refused(path, rf"{name}: in the manifest, not there")
        (path / name).write_bytes(content)
        check_manifest(open_checkpoint(path))


@pytest.mark.parametrize("to", ["hf", "meta", "orbax"])
@pytest.mark.parametrize("name", SETTINGS)
def test_each_file_added_is_named(tmp_path, to, name):
    path = convert("tiny", tmp_path / "out", to=to).target
    if (path / name).exists():
        recorded = json.loads((path / MANIFEST).read_text())
        del recorded["files"][name]
        (path / MANIFEST).write_text(json.dumps(recorded))
    else:
        (path / name).write_text(SETTINGS[name])
    _refused(path, f"{name}: not in the manifest, so it was added")


def test_the_metadata_of_a_gguf_file(copied):
    """Its tokenizer and settings are there: a token exchanged for another of its length."""
    path = copied("gguf") / "model.gguf"
    content = path.read_bytes()
    # Behind a key are its type and, of a text, the length.
    for key, skipped in ((b"tokenizer.chat_template", 12), (b"general.file_type", 4)):
        changed = bytearray(content)
        changed[content.index(key) + len(key) + skipped] ^= 1
        path.write_bytes(changed)
        _refused(path, "model.gguf: its metadata .* was changed")
        _refused(path.parent, "model.gguf: its metadata .* was changed")
    path.write_bytes(content)
    assert check_manifest(open_checkpoint(path)) == []


def test_the_metadata_of_a_split_gguf_model(tmp_path):
    path = convert("tiny", tmp_path / "out", to="gguf", shards=3).target
    assert check_manifest(open_checkpoint(path)) == []
    assert len(json.loads((path / MANIFEST).read_text())["heads"]) == 3
    part = sorted(path.glob("*.gguf"))[1]
    recorded = json.loads((path / MANIFEST).read_text())
    recorded["heads"][1] = "0" * 64
    (path / MANIFEST).write_text(json.dumps(recorded))
    _refused(path, f"{part.name}: its metadata .* was changed")
    recorded["heads"] = recorded["heads"][:2]
    (path / MANIFEST).write_text(json.dumps(recorded))
    _refused(path, "3 files of weights, in the manifest 2")


def test_older_manifests_are_read_and_what_they_lack_is_said(copied, capsys):
    path = copied("hf")
    recorded = json.loads((path / MANIFEST).read_text())
    older = {"version": 1, "config": recorded["config"], "tensors": recorded["tensors"]}
    (path / MANIFEST).write_text(json.dumps(older))
    (path / "chat_template.jinja").write_text("{{ 1 }}")
    (note,) = check_manifest(open_checkpoint(path))
    assert "version 1" in note and "chat template" in note
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(path), "--manifest"])
    assert not stopped.value.code and f"note: {note}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"version": 0},
        {"version": True},
        {"version": "2"},
        {"tensors": []},
        {"config": None},
        {"files": None},
        {"files": []},
        {"heads": {}},
        {"files": {"tokenizer.json": 5}},
        {"files": {"../elsewhere": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
    ],
)
def test_garbage_in_a_manifest(copied, change):
    path = copied("hf")
    recorded = json.loads((path / MANIFEST).read_text()) | change
    (path / MANIFEST).write_text(json.dumps(recorded))
    _refused(path, str(path))


@pytest.mark.parametrize("to", FORMATS)
def test_links_out_of_the_directory_are_not_followed(copied, tmp_path, to):
    path = copied(to)
    beside = [] if to == "gguf" else _beside(path)
    weights = [f.name for f in path.iterdir() if f.suffix in (".safetensors", ".pth", ".gguf")]
    for name in [MANIFEST, *beside, *weights]:
        elsewhere = tmp_path / f"elsewhere-{name}"
        os.rename(path / name, elsewhere)
        (path / name).symlink_to(elsewhere)
        with pytest.raises(CheckpointError, match="lies outside the directory"):
            check_manifest(open_checkpoint(path))
        (path / name).unlink()
        os.rename(elsewhere, path / name)
    assert check_manifest(open_checkpoint(path)) == []


def test_a_manifest_beside_a_file_is_not_followed_elsewhere(tmp_path):
    (tmp_path / "there").mkdir()
    path = convert("tiny", tmp_path / "there" / "a.gguf", to="gguf").target
    assert check_manifest(open_checkpoint(path)) == []
    manifest = path.with_name(f"a.gguf.{MANIFEST}")
    os.rename(manifest, tmp_path / "elsewhere")
    manifest.symlink_to(tmp_path / "elsewhere")
    _refused(path, "lies outside the directory")
