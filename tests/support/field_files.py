"""Checkpoints as people really have them: a small sound one, and what is done to its files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxllama.checkpoint import Checkpoint, convert, in_memory, tiny

WEIGHTS, CONFIG = "model.safetensors", "config.json"
INDEX = "model.safetensors.index.json"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7" * 64 + b"\nsize 4976698672\n"
)
# What stands in a file's place, and a word of what is said of it.
STRANGERS: dict[str, tuple[bytes, str]] = {
    "pointer": (POINTER, "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "web page"),
    "error": (b"Entry not found", "server's answer"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(60), "gzip"),
    "zip": (b"PK\x03\x04\x14\0\0\0" + bytes(60), "zip"),
    "Xet": (b"# xet version 0\nfilesize = 9\n", "Xet pointer"),
    "NumPy": (b"\x93NUMPY\x01\0" + bytes(60), "NumPy"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(60), "picture"),
    "PDF": (b"%PDF-1.7\n" + bytes(60), "PDF"),
    "UTF-16": (("{}" * 40).encode("utf-16"), "UTF-16"),
    "empty": (b"", ""),
}


def sound(seed: int = 0) -> Checkpoint:
    """A model of two layers; another seed has other weights."""
    return tiny(
        seed,
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )


def zero_rows(*tokens: int) -> Checkpoint:
    """The same with rows of zeros for tokens that were never trained."""
    made = sound()
    weights = {name: made.read(name).copy() for name in made.tensors}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][list(tokens)] = 0
    files = {name: read() for name, read in made.companions.items()}
    return in_memory(made.config, weights, companions=files)


def write(made: Checkpoint, directory: Path, to: str = "hf", **options: Any) -> Path:
    """Write a checkpoint without jaxllama's manifest, as others' have none."""
    target = convert(made, directory, to=to, **options).target
    if target.is_dir():
        (target / "jaxllama_manifest.json").unlink()
    return target


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; `...` removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def rename(directory: Path, change: Callable[[str], str]) -> None:
    """Give every tensor of a directory another name."""
    store(directory, {change(name): values for name, values in tensors(directory).items()})


def tensors(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / WEIGHTS)


def store(directory: Path, found: Mapping[str, np.ndarray]) -> None:
    save_file(dict(found), directory / WEIGHTS, {"format": "pt"})


def shard(directory: Path, found: Mapping[str, np.ndarray], parts: int = 2) -> list[Path]:
    """Write shards and their index beside what there is."""
    names = list(found)
    weight_map, written = {}, []
    for number in range(parts):
        file = f"model-{number + 1:05}-of-{parts:05}.safetensors"
        own = names[number::parts]
        save_file({name: found[name] for name in own}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
        written.append(directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return written


def at_odd_bytes(directory: Path) -> None:
    """Lengthen the header to an odd number of bytes, and drop its metadata."""
    data = (directory / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def replace_file(file: Path, content: bytes) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    file.write_bytes(content)


def set_encoding(file: Path, tensor: str, number: int) -> None:
    """State another encoding of one tensor in a GGUF file's directory."""
    data = bytearray(file.read_bytes())
    name = tensor.encode()
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    (rank,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at + 4 + 8 * rank, number)
    file.write_bytes(data)


def set_key(file: Path, key: str, value: int) -> None:
    """Give a key of a GGUF file, that holds an unsigned integer of 32 bits, another."""
    data = bytearray(file.read_bytes())
    name = key.encode()
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    assert struct.unpack_from("<I", data, at) == (gguf.GGUFValueType.UINT32,)
    struct.pack_into("<I", data, at + 4, value)
    file.write_bytes(data)
