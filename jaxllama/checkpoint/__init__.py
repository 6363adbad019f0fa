"""Checkpoints of every Llama format, read lazily under one set of names."""

from __future__ import annotations

import os
from pathlib import Path

from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.gguf import is_gguf, open_gguf
from jaxllama.checkpoint.hf import is_hf, open_hf
from jaxllama.checkpoint.load import load_model, validate
from jaxllama.checkpoint.samples import fetch_smollm2, in_memory, open_smollm2, tiny
from jaxllama.errors import CheckpointError

SAMPLES = {"tiny": tiny, "smollm2": open_smollm2}


def open_checkpoint(source: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Open a checkpoint, its format detected; weights are read only when asked for.

    Args:
        source: a directory or file, or `tiny` or `smollm2`. (A directory of that name is `./tiny`.)

    Raises:
        CheckpointError: nothing is there, it is in no known format, or it is damaged.
        ConfigError: its configuration is contradictory or not understood.
    """
    if isinstance(source, Checkpoint):
        return source
    if source in SAMPLES:
        return SAMPLES[str(source)]()
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"{path}: does not exist; give a directory, a file, or one of {', '.join(SAMPLES)}"
        )
    if path.is_file():
        if is_gguf(path):
            return open_gguf(path)
        raise CheckpointError(f"{path}: not a GGUF file; other formats are given as a directory")
    if is_hf(path):
        return open_hf(path)
    gguf_files = sorted(path.glob("*.gguf"))
    if len(gguf_files) == 1:
        return open_gguf(gguf_files[0])
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(f"{path}: in no known format; it holds {names}")


__all__ = [
    "SAMPLES",
    "Checkpoint",
    "TensorInfo",
    "fetch_smollm2",
    "in_memory",
    "load_model",
    "open_checkpoint",
    "tiny",
    "validate",
]
