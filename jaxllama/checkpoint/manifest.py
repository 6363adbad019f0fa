"""Digests of tensors in canonical layout, and the manifest of them that a conversion leaves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
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
_VERSION = 2
_OLDER = (1,)  # of the weights and the configuration alone


def digest(values: np.ndarray) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes: the same in every format."""
    head = f"{values.dtype.name} {'x'.join(map(str, values.shape))}\n".encode()
    running = hashlib.sha256(head)
    running.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return running.hexdigest()


def digests_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of whole files."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint held when it was written.

    Attributes:
        tensors: digest by canonical name.
        hf_config: its configuration, as a Hugging Face config.json holds it; of an adapter what
            adapter_config.json does.
        files: digest of each file beside the weights, by name; None where the manifest is of a
            version that says nothing of them.
        heads: digests of what files of weights say besides, in their order: of a GGUF file all
            before its tensors, the tokenizer among it.
    """

    tensors: Mapping[str, str]
    hf_config: Mapping[str, Any]
    files: Mapping[str, str] | None = None
    heads: Sequence[str] = ()

    def to_json(self) -> bytes:
        """Return the contents of a manifest file."""
        content = {
            "version": _VERSION,
            "digest": "sha256; of tensors: dtype, shape and bytes in canonical layout",
            "config": dict(self.hf_config),
            "files": dict(self.files or {}),
            "heads": list(self.heads),
            "tensors": dict(self.tensors),
        }
        return json.dumps(content, indent=1).encode()


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a checkpoint lies: in its directory, or beside its file.

    Raises:
        CheckpointError: it is a link that leads elsewhere.
    """
    if path.is_dir():
        return files.inside(path, MANIFEST)
    own = f"{path.name}.{MANIFEST}"
    if path.is_file() and not os.path.lexists(path.with_name(own)):
        own = MANIFEST  # of a directory with one GGUF file
    return files.inside(path.parent, own)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or a link that leads elsewhere.
    """
    file = manifest_path(path)
    content = files.read_json(file, limits.INDEX_BYTES)
    version = content.get("version")
    if version not in (_VERSION, *_OLDER) or type(version) is not int:
        raise CheckpointError(
            f"{file}: version {version!r}, expected {_VERSION} or older; it was written by another "
            "release, or damaged"
        )
    kinds: dict[str, type] = {"tensors": dict, "config": dict}
    if version == _VERSION:
        kinds |= {"files": dict, "heads": list}
    for key, kind in kinds.items():
        value = content.get(key)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{file}: {key} is of type {type(value).__name__}, expected {kind.__name__}"
            )
    return Manifest(
        content["tensors"],
        content["config"],
        content["files"] if version == _VERSION else None,
        content["heads"] if version == _VERSION else (),
    )


def check_manifest(checkpoint: Checkpoint) -> list[str]:
    """Compare all that decides a checkpoint's answers with the manifest written with it.

    These are its tensors, its configuration, and the files beside them: tokenizer, chat template,
    generation settings.

    Returns:
        Notes on what the manifest says nothing of.

    Raises:
        CheckpointError: there is no manifest, or anything was changed, is missing or was added.
    """
    if checkpoint.path is None:
        raise CheckpointError(f"{checkpoint.label}: made in memory, so it has no manifest")
    manifest = read_manifest(checkpoint.path)
    problems = _file_problems(checkpoint, manifest)
    if LlamaConfig.from_hf(manifest.hf_config) != checkpoint.config:
        problems.insert(0, f"its configuration was changed ({checkpoint.config_source})")
    problems += tensor_problems(manifest, checkpoint.tensors, checkpoint.read)
    refuse_changed(checkpoint.label, problems)
    if manifest.files is None:
        return [
            "its manifest is of version 1, which has digests of the weights alone: tokenizer, chat "
            "template and generation settings are not compared; `jaxllama convert` writes a new one"
        ]
    return []


def refuse_changed(label: str, problems: Sequence[str]) -> None:
    """Raise a `CheckpointError` with what is not as a manifest says, if anything."""
    if problems:
        raise CheckpointError(
            join_problems(f"{label}: changed since its manifest was written", problems)
        )


def tensor_problems(
    manifest: Manifest, names: Collection[str], read: Callable[[str], np.ndarray]
) -> list[str]:
    """Return a line for each tensor that is not as a manifest says, is missing or was added."""
    recorded = manifest.tensors
    problems = [f"{n}: in the manifest, not there" for n in sorted({*recorded} - {*names})]
    for name in names:
        if name not in recorded:
            problems.append(f"{name}: not in the manifest")
        elif (found := digest(read(name))) != recorded[name]:
            problems.append(f"{name}: digest {found}, recorded {recorded[name]}")
    return problems


def file_problems(manifest: Manifest, directory: Path) -> list[str]:
    """Return a line for each file beside the weights that is not as a manifest says, or gone."""
    problems = []
    for name, recorded in (manifest.files or {}).items():
        file = files.inside(directory, name)
        if not os.path.lexists(file):
            problems.append(f"{name}: in the manifest, not there")
        elif (found := _digest_of(file)) != recorded:
            problems.append(f"{name}: was changed: digest {found}, recorded {recorded}")
    return problems


def _file_problems(checkpoint: Checkpoint, manifest: Manifest) -> list[str]:
    """Return a line for each file beside the weights that is not as the manifest says."""
    path = checkpoint.path
    if manifest.files is None or path is None:
        return []
    directory = path if path.is_dir() else path.parent
    heads = checkpoint.head_digests()
    there: set[str] = _beside(checkpoint) if path.is_dir() else set()
    problems = [
        f"{file}: its metadata (configuration, tokenizer, chat template) was changed"
        for (file, found), recorded in zip(heads.items(), manifest.heads, strict=False)
        if found != recorded
    ]
    if len(heads) != len(manifest.heads):
        problems.append(f"{len(heads)} files of weights, in the manifest {len(manifest.heads)}")
    problems += file_problems(manifest, directory)
    problems += [
        f"{n}: not in the manifest, so it was added" for n in sorted(there - manifest.files.keys())
    ]
    return problems


def _beside(checkpoint: Checkpoint) -> set[str]:
    """Return the files of a directory that decide its answers, weights apart."""
    return {checkpoint.config_source, *checkpoint.companions}


def _digest_of(file: Path) -> str:
    return digests_of({"": files.read_bytes(file, limits.TOKENIZER_BYTES)})[""]
