"""Orbax: sharded arrays that restore onto any mesh, configuration and tokenizer beside them.

Tensors are saved one by one under canonical names, so that neither saving nor restoring holds more
than asked for, and in chunks, so that a host reads only the slices of its own devices.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.hf.read import CONFIG, directory_checkpoint
from jaxllama.checkpoint.orbax.arrays import ArrayStore, damaged
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError

if TYPE_CHECKING:  # imported where it is used: it takes half as long to load as JAX
    import orbax.checkpoint.experimental.v1 as ocp

ARRAYS = "arrays"
# Above the 32 MB up to which the C library keeps freed memory: with chunks of 8 MB the peak of a
# conversion of an 8B model was 0.7 GB higher.
_CHUNK_BYTES = 48 << 20


def is_orbax(path: Path) -> bool:
    """Whether a path looks like one of our Orbax directories."""
    return (path / ARRAYS).is_dir()


def open_orbax(path: Path) -> Checkpoint:
    """Open an Orbax directory; arrays are read only when asked for.

    Raises:
        CheckpointError: it is damaged or not complete.
        ConfigError: its config.json is contradictory or not understood.
    """
    config_file = files.inside(path, CONFIG)
    _refuse_links(path)
    content = files.read_json(config_file)
    notes: list[str] = []
    config = LlamaConfig.from_hf(content, source=str(config_file), notes=notes)
    store = ArrayStore(path / ARRAYS)
    infos = {n: TensorInfo(a.shape, a.dtype, path / ARRAYS) for n, a in store.arrays.items()}
    found = directory_checkpoint(path, "orbax", config, content, infos, store.read, store.read_part)
    return found.noted(*(f"{CONFIG}: {note}" for note in notes))


def restore_sharded(
    path: Path, sharding_of: Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
) -> dict[str, jax.Array]:
    """Restore all tensors onto devices, whatever mesh they were saved from.

    Every host reads the slices of its own devices alone.

    Args:
        path: the directory.
        sharding_of: the sharding of a tensor, given its canonical name and shape.

    Raises:
        CheckpointError: it is damaged or not complete.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    _refuse_links(path)
    store = ArrayStore(path / ARRAYS)
    store.check()
    wanted = {
        name: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding_of(name, one.shape))
        for name, one in store.arrays.items()
    }
    try:
        with context():
            restored: dict[str, jax.Array] = ocp.load(path / ARRAYS, wanted)
    except Exception as error:
        raise damaged(path / ARRAYS, error) from None
    return restored


def _hush_event_loops() -> None:
    """Let no write that goes on after a failed save complain that nobody waits for it any more."""
    if getattr(sys.unraisablehook, "func", None) is not _complain:
        sys.unraisablehook = partial(_complain, sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)


def _complain(before: Callable[[Any], Any], unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)


def context() -> ocp.Context:
    """Return how arrays are saved and restored here."""
    import orbax.checkpoint.experimental.v1 as ocp

    # Orbax logs a dozen lines for every save, and every failure, which is raised as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _hush_event_loops()
    context = ocp.Context()
    context.array.saving.use_compression = False  # trained weights hardly shrink
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    # Plain chunk files: OCDBT copies what is saved once more, and takes half again as long.
    context.array.saving.use_ocdbt = False
    return context


def _refuse_links(path: Path) -> None:
    """Refuse links out of the directory, and pipes, which would be waited for without end.

    In the Hub's cache every file is a link to a blob of the same model: those stay.
    """
    if (path / ARRAYS).is_symlink() or not (path / ARRAYS).is_dir():
        raise _linked(path / ARRAYS)
    waiting = [str(path / ARRAYS)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for one in found:
                if one.is_dir(follow_symlinks=False):
                    waiting.append(one.path)
                elif not one.is_file():
                    raise _linked(Path(one.path))
                elif one.is_symlink():
                    files.inside(path, os.path.relpath(one.path, path))


def _linked(entry: Path) -> CheckpointError:
    return CheckpointError(
        f"{entry}: is a symbolic link or no regular file; the arrays of a checkpoint belong in "
        "its directory"
    )
