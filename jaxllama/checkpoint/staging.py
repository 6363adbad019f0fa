"""Write files beside their target and rename them at the end: all of a target, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.layout import Layout
from jaxllama.errors import CheckpointError


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield a directory that becomes `target` when the block ends, and vanishes if it fails.

    Raises:
        CheckpointError: the target exists, or cannot be written (disk full, permission).
    """
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        staging.chmod(0o755)
        yield staging
        sync(staging)
        rename(staging, target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def rename(staging: Path, target: Path) -> None:
    """Rename a finished file or directory to its target, and make the renaming durable."""
    os.rename(staging, target)
    sync(target.parent)


def sync(directory: Path) -> None:
    """Flush a directory's entries to the disk, where the platform can."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create_files(layout: Layout, directory: Path) -> None:
    """Create a layout's files: small ones whole, large ones with their heads at full length."""
    for name, content in layout.small.items():
        (directory / name).write_bytes(content)
    for name, head in layout.heads.items():
        with (directory / name).open("wb") as file:
            file.write(head)
            # Takes the space now, so that a full disk is known before hours of work.
            os.posix_fallocate(file.fileno(), 0, max(1, layout.lengths[name]))


def write_tensor(layout: Layout, directory: Path, name: str, values: np.ndarray) -> None:
    """Write one canonical tensor to all its places."""
    for piece in layout.pieces[name]:
        stored = np.ascontiguousarray(piece.transform(values, piece.dtype))
        with (directory / piece.file).open("r+b") as file:
            file.seek(piece.offset)
            stored.tofile(file)


def write_checkpoint(checkpoint: Checkpoint, layout: Layout, target: Path) -> None:
    """Write a small checkpoint at once; `jaxllama.convert` is for large ones.

    Raises:
        CheckpointError: the target exists or cannot be written, or a tensor cannot be read.
    """
    with staged_directory(target) as staging:
        create_files(layout, staging)
        for name in layout.pieces:
            write_tensor(layout, staging, name, checkpoint.read(name))
