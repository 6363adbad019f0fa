"""Open a checkpoint of any format."""

from __future__ import annotations

import os
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.gguf.read import is_gguf, open_gguf
from jaxllama.checkpoint.hf.read import is_hf, open_hf
from jaxllama.checkpoint.meta.directory import is_meta, open_meta
from jaxllama.checkpoint.orbax.read import is_orbax, open_orbax
from jaxllama.checkpoint.samples import open_smollm2, tiny
from jaxllama.errors import CheckpointError, InputError

SAMPLES = {"tiny": tiny, "smollm2": open_smollm2}


def open_checkpoint(source: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Open a checkpoint, its format detected; weights are read only when asked for.

    Args:
        source: a directory or file, or `tiny` or `smollm2`. (A directory of that name is `./tiny`.)

    Raises:
        CheckpointError: nothing is there, it is in no known format, or it is damaged.
        InputError: no path and no checkpoint, or an empty one.
        ConfigError: its configuration is contradictory or not understood.
    """
    if isinstance(source, Checkpoint):
        return source
    if source in SAMPLES:
        return SAMPLES[str(source)]()
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"checkpoint {source!r}: expected a path, a name, or an open checkpoint")
    if not str(source):
        raise InputError(
            f"checkpoint (nothing): give a directory, a file, or one of {', '.join(SAMPLES)}"
        )
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"{path}: does not exist; give a directory, a file, or one of {', '.join(SAMPLES)}"
        )
    try:
        return _open(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> Checkpoint:
    if path.is_file():
        if is_gguf(path):
            return open_gguf(path)
        raise CheckpointError(f"{path}: not a GGUF file; other formats are given as a directory")
    # Orbax before HF, since both have a config.json.
    for is_format, open_format in ((is_orbax, open_orbax), (is_meta, open_meta), (is_hf, open_hf)):
        if is_format(path):
            return open_format(path)
    gguf_files = sorted(path.glob("*.gguf"))
    if len(gguf_files) == 1:
        return open_gguf(files.inside(path, gguf_files[0].name))
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(f"{path}: in no known format; it holds {names}")
