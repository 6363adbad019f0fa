"""First bytes of files: what plainly is another kind is named, what may be sound is left."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from field_files import STRANGERS
from safetensors.numpy import save_file

from jaxllama import files
from jaxllama.checkpoint.hf.safetensors_file import read_header
from jaxllama.errors import CheckpointError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"Found. Redirecting to https://host/x", "a server's answer ('Found. Redirecting"),
        (b"404: Not Found", "a server's answer"),
        (b"HTTP/1.1 503 Service Unavailable", "a server's answer"),
        (b'{"message":"Not Found"}', "a server's answer"),
        (b'\n{ "error" : "x"}', "a server's answer"),
        (b"<!-- a page --><html>", "a web page"),
        (b"config.json" + bytes(246) + b"ustar\x0000", "a tar archive"),
        (b"version https://hawser.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x80\x03}", "a pickle"),
        (b'{"model_type": "llama", "message": 1}', ""),
        (b"404 words and no status", ""),
        (b"{% if message %}not found{% endif %}", ""),
    ],
)
def test_more_strangers(content: bytes, said: str):
    found = files.stranger(content)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_named(kind: str, tmp_path: Path):
    content, word = STRANGERS[kind]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=word or "empty"):
        files.refuse_stranger(tmp_path / "x")


@pytest.mark.parametrize(
    "head", [b'{"a": 1}', b"\x08\0\0\0\0\0\0\0", b"GGUF", b"IQ== 0\n", b"\x0a"]
)
def test_what_may_be_sound_is_left(head: bytes):
    assert files.stranger(head, own=b"GGUF") == ""


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x088B1F])
def test_a_header_whose_length_looks_like_an_archive(length: int, tmp_path: Path):
    """640 bytes are written as a pickle begins, 559,903 as gzip does."""
    file = tmp_path / "x.safetensors"
    save_file({"a": np.arange(3)}, file)
    data = file.read_bytes()
    (old,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + old].ljust(length)
    file.write_bytes(struct.pack("<Q", length) + text + data[8 + old :])
    assert files.stranger(file.read_bytes()[:64]) != ""
    assert list(read_header(file)) == ["a"]


def test_a_safetensors_file_in_anothers_place():
    header = b'{"__metadata__":{}}'
    content = len(header).to_bytes(8, "little") + header
    assert files.stranger(content) == "a safetensors file; name it so, *.safetensors"
    assert files.stranger(b"{" + b" " * 7 + content[8:]) == ""  # JSON with such a byte


def test_a_directory_in_a_files_place(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is a directory, expected a file"):
        files.read_json(tmp_path)


def test_a_saved_error_in_json(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"error": "Access is restricted"}))
    with pytest.raises(CheckpointError, match="a server's answer"):
        files.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"errors": 0}))
    assert files.read_json(tmp_path / "config.json") == {"errors": 0}
