"""Orbax: sharded arrays that restore onto any mesh, configuration and tokenizer beside them.

Tensors are saved one by one under canonical names, so that neither saving nor restoring holds more
than asked for, and in chunks, so that a host reads only the slices of its own devices.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.hf.read import CONFIG, directory_checkpoint
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError

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
    _refuse_links(path / ARRAYS)
    content = files.read_json(config_file)
    notes: list[str] = []
    config = LlamaConfig.from_hf(content, source=str(config_file), notes=notes)
    stored = _metadata(path)
    infos = {
        name: TensorInfo(tuple(found.shape), np.dtype(found.dtype), path / ARRAYS)
        for name, found in stored.items()
    }

    def read(name: str) -> np.ndarray:
        # Shape and dtype without a sharding ask for an array of the host.
        return np.asarray(_restore(path, stored, {name: infos[name]})[name])

    found = directory_checkpoint(path, "orbax", config, content, infos, read)
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
    _refuse_links(path / ARRAYS)
    stored = _metadata(path)
    wanted = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding_of(name, tuple(leaf.shape))
        )
        for name, leaf in stored.items()
    }
    return _restore(path, stored, wanted)


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


def _metadata(path: Path) -> dict[str, Any]:
    try:
        _check_store(path / ARRAYS / "state")
        with context():
            stored = ocp.metadata(path / ARRAYS).metadata
    except Exception as error:  # Orbax and TensorStore raise many kinds on a damaged directory
        raise _damaged(path, error) from None
    flat = isinstance(stored, dict) and all(hasattr(leaf, "shape") for leaf in stored.values())
    if not flat:
        raise _damaged(path, ValueError("it does not describe one array for each name"))
    return stored


def _refuse_links(directory: Path) -> None:
    """Refuse links out of the directory, and pipes, which would be waited for without end."""
    for entry in (directory, *directory.rglob("*")):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise CheckpointError(
                f"{entry}: is a symbolic link or no regular file; the arrays of a checkpoint "
                "belong in its directory"
            )


def _check_store(directory: Path) -> None:
    """Read every array's description once, since Orbax does so in tasks that it forgets.

    Where several of these fail, the rest complain on standard error long after the first error.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/"}}
    if (directory / "manifest.ocdbt").exists():
        opened = tensorstore.KvStore.open(store).result()
        for key in opened.list().result():
            if key.endswith(b"zarr.json"):
                json.loads(opened.read(key).result().value)
    for description in directory.rglob("zarr.json"):
        json.loads(description.read_bytes())


def _restore(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with context():
            tree = {name: wanted.get(name, ocp.PLACEHOLDER) for name in stored}
            restored = ocp.load(path / ARRAYS, tree)
    except Exception as error:
        raise _damaged(path, error) from None
    return {name: restored[name] for name in wanted}


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(f"{path / ARRAYS}: damaged or not complete: {reason}")
