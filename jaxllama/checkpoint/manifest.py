"""Digests of tensors in canonical layout, and the manifest of them that a conversion leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError, join_problems
from jaxllama.files import limits

MANIFEST = "jaxllama_manifest.json"
_VERSION = 1


def digest(values: np.ndarray) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes: the same in every format."""
    head = f"{values.dtype.name} {'x'.join(map(str, values.shape))}\n".encode()
    running = hashlib.sha256(head)
    running.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return running.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint held when it was written.

    Attributes:
        tensors: digest by canonical name.
        hf_config: its configuration, as a Hugging Face config.json holds it.
    """

    tensors: Mapping[str, str]
    hf_config: Mapping[str, Any]

    def to_json(self) -> bytes:
        """Return the contents of a manifest file."""
        content = {
            "version": _VERSION,
            "digest": "sha256 of dtype, shape and bytes in canonical layout",
            "config": dict(self.hf_config),
            "tensors": dict(self.tensors),
        }
        return json.dumps(content, indent=1).encode()


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a checkpoint lies: in its directory, or beside its file."""
    own = path.with_name(f"{path.name}.{MANIFEST}")
    if path.is_file() and not own.exists():
        return path.with_name(MANIFEST)  # of a directory with one GGUF file
    return path / MANIFEST if path.is_dir() else own


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = manifest_path(path)
    content = files.read_json(file, limits.INDEX_BYTES)
    tensors = content.get("tensors")
    if content.get("version") != _VERSION or not isinstance(tensors, dict):
        raise CheckpointError(
            f"{file}: version {content.get('version')!r} with tensors of type "
            f"{type(tensors).__name__}, expected version {_VERSION} with an object"
        )
    return Manifest(tensors, content.get("config") or {})


def check_manifest(checkpoint: Checkpoint) -> None:
    """Compare every tensor of a checkpoint with the manifest written with it.

    Raises:
        CheckpointError: there is no manifest, or tensors or the configuration differ from it.
    """
    if checkpoint.path is None:
        raise CheckpointError(f"{checkpoint.label}: made in memory, so it has no manifest")
    manifest = read_manifest(checkpoint.path)
    recorded = manifest.tensors
    if LlamaConfig.from_hf(manifest.hf_config) != checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.label}: its configuration was changed since its manifest was written"
        )
    problems = [f"{n}: in the manifest, not there" for n in recorded.keys() - checkpoint.tensors]
    for name in checkpoint.tensors:
        if name not in recorded:
            problems.append(f"{name}: not in the manifest")
        elif (found := digest(checkpoint.read(name))) != recorded[name]:
            problems.append(f"{name}: digest {found}, recorded {recorded[name]}")
    if problems:
        title = f"{checkpoint.label}: changed since its manifest was written"
        raise CheckpointError(join_problems(title, problems))
