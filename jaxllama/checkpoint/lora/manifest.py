"""The manifest of an adapter: digests of its factors and of adapter_config.json."""

from __future__ import annotations

import os
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.hf.safetensors_file import read_header, read_tensor
from jaxllama.checkpoint.lora.contents import WEIGHTS
from jaxllama.checkpoint.lora.settings import CONFIG
from jaxllama.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    file_problems,
    read_manifest,
    refuse_changed,
    tensor_problems,
)
from jaxllama.errors import CheckpointError


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no checkpoint."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").exists()


def check_adapter(adapter: Path) -> None:
    """Compare an adapter with the manifest that `save_lora` wrote.

    Raises:
        CheckpointError: there is no manifest of it, or anything was changed, is missing or was
            added.
    """
    manifest = read_manifest(adapter)
    if not _is_of_adapter(manifest):
        raise CheckpointError(
            f"{adapter}: its {MANIFEST} says nothing of {CONFIG}: it is of no adapter"
        )
    _check(adapter, manifest)


def check_adapter_if_told(adapter: Path) -> None:
    """Do so where there is a manifest of it: adapters of PEFT's own have none.

    Raises:
        CheckpointError: see `check_adapter`.
    """
    if os.path.lexists(adapter / MANIFEST) and _is_of_adapter(manifest := read_manifest(adapter)):
        _check(adapter, manifest)


def _is_of_adapter(manifest: Manifest) -> bool:
    """Whether it is not that of a checkpoint whose directory an adapter lies in."""
    return CONFIG in (manifest.files or {})


def _check(adapter: Path, manifest: Manifest) -> None:
    file = files.inside(adapter, WEIGHTS)
    header = read_header(file)
    problems = tensor_problems(manifest, header, lambda name: read_tensor(file, header[name]))
    refuse_changed(str(adapter), [*file_problems(manifest, adapter), *problems])
