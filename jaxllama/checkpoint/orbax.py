"""Orbax: sharded arrays that restore onto any mesh, configuration and tokenizer beside them.

Tensors are saved one by one under canonical names, so that neither saving nor restoring holds more
than asked for, and in chunks, so that a host reads only the slices of its own devices.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.hf import CONFIG, companions, tokenizer_loader
from jaxllama.checkpoint.hf_write import companion_files, hf_config
from jaxllama.checkpoint.layout import byte_size
from jaxllama.checkpoint.names import HEAD, canonical_names
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError

ARRAYS = "arrays"
# Above the 32 MB up to which the C library keeps freed memory: with chunks of 8 MB the peak of a
# conversion of an 8B model was 0.7 GB higher.
_CHUNK_BYTES = 48 << 20
# A save has a fixed cost of about a tenth of a second.
_BATCH_BYTES = 1 << 28


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
    config = LlamaConfig.from_hf(content, source=str(config_file))
    stored = _metadata(path)
    names, notes, problems = canonical_names(stored, config, "hf")
    tensors = {
        name: TensorInfo(tuple(stored[at].shape), np.dtype(stored[at].dtype), path / ARRAYS)
        for name, at in names.items()
    }
    head = tensors.pop(HEAD, None) if config.tie_word_embeddings else None

    def read(name: str) -> np.ndarray:
        # Shape and dtype without a sharding ask for an array of the host.
        return np.asarray(_restore(path, stored, {names[name]: tensors[name]})[names[name]])

    return Checkpoint(
        path=path,
        format="orbax",
        config=config,
        hf_config=content,
        tensors=tensors,
        reader=read,
        config_source=CONFIG,
        stored_head=head,
        notes=notes,
        problems=problems,
        companions=companions(path),
        tokenizer_loader=tokenizer_loader(path),
    )


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


def save_sharded(
    path: Path, tensors: Mapping[str, jax.Array], checkpoint: Checkpoint | LlamaConfig
) -> None:
    """Save arrays on devices, each host its own shards.

    Args:
        path: directory that is to appear.
        tensors: by canonical name, in canonical layout.
        checkpoint: whose configuration and tokenizer go beside them, or the configuration alone.

    Raises:
        CheckpointError: the directory exists or cannot be written.
    """
    if path.exists():
        raise CheckpointError(f"{path}: exists already; remove it or choose another")
    try:
        with _context():
            ocp.save(path / ARRAYS, dict(tensors))
        if jax.process_index() == 0:
            for name, content in _small(checkpoint, tensors).items():
                (path / name).write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def _small(checkpoint: Checkpoint | LlamaConfig, tensors: Mapping[str, Any]) -> dict[str, bytes]:
    if isinstance(checkpoint, LlamaConfig):
        return {CONFIG: json.dumps(checkpoint.to_hf(), indent=2).encode()}
    dtypes = {name: np.dtype(tensor.dtype) for name, tensor in tensors.items()}
    config = json.dumps(hf_config(checkpoint, dtypes), indent=2).encode()
    return {CONFIG: config, **companion_files(checkpoint)}


class OrbaxSink:
    """Writes tensors of a conversion in batches, each saved atomically while the next is read."""

    flushes_beside = True

    def __init__(self, checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype], directory: Path):
        self._checkpoint, self._dtypes, self._directory = checkpoint, dtypes, directory
        self._batch: dict[str, np.ndarray] = {}
        self._saving: Any = None
        self._resumed = False
        self._lock = threading.Lock()

    def create(self) -> None:
        """Write the small files, and see that there is room for the arrays."""
        needed = sum(
            byte_size(self._checkpoint.tensors[name].shape, dtype)
            for name, dtype in self._dtypes.items()
        )
        if needed > shutil.disk_usage(self._directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        config = json.dumps(hf_config(self._checkpoint, self._dtypes), indent=2).encode()
        for name, content in {CONFIG: config, **companion_files(self._checkpoint)}.items():
            (self._directory / name).write_bytes(content)

    def resume(self) -> None:
        """Take up what an earlier run saved."""
        self._resumed = True

    def write(self, name: str, values: np.ndarray) -> None:
        """Keep a tensor for the next batch, and save the batch once it is large."""
        with self._lock:
            if self._waiting() + values.nbytes > _BATCH_BYTES:
                self._start()
            self._batch[name] = values
            if self._waiting() > _BATCH_BYTES:  # a large tensor, beside which no other fits
                self._start()
                self._wait()

    def _waiting(self) -> int:
        return sum(tensor.nbytes for tensor in self._batch.values())

    def flush(self) -> None:
        """Save the batch."""
        with self._lock:
            self._start()
            self._wait()

    def _start(self) -> None:
        self._wait()
        batch, self._batch = self._batch, {}
        if self._resumed:
            for name, values in batch.items():
                self._save_again({name: values})
        elif batch:
            with _saving(self._directory):
                self._saving = ocp.partial.save_async(self._directory / ARRAYS, _taken_over(batch))

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            with _saving(self._directory):
                saving.result()

    def _save_again(self, batch: dict[str, np.ndarray]) -> None:
        """Save a tensor that a crash may have kept from the journal, but not from the disk.

        What is there is whole, since every save is atomic, and the same, since the journal's plan
        is.
        """
        with _saving(self._directory):
            try:
                ocp.partial.save(self._directory / ARRAYS, batch)
            except Exception as error:
                if type(error).__name__ != "PartialSaveReplacementError":  # private to Orbax
                    raise

    def finish(self) -> None:
        """Make the saved batches one checkpoint."""
        if not (self._directory / ARRAYS).exists():  # else a crash came right after
            with _saving(self._directory):
                ocp.partial.finalize(self._directory / ARRAYS)


def _taken_over(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a batch as JAX's arrays in the same memory where it is aligned.

    Orbax copies NumPy's arrays twice, in case they change: a tensor of 1 GB took 5.6 s, this way
    0.6 s.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to know no processor
        return dict(batch)
    with jax.enable_x64(True):  # else float64 would be narrowed
        return {name: jax.device_put(v, host, may_alias=True) for name, v in batch.items()}


@contextmanager
def _saving(directory: Path) -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise into one line."""
    try:
        with _context():
            yield
    except OSError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{directory}: cannot be written: {reason}") from error


def _context() -> ocp.Context:
    # Orbax logs a dozen lines for every save, and every failure, which is raised as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ocp.Context()
    context.array.saving.use_compression = False  # trained weights hardly shrink
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    # Plain chunk files: OCDBT copies what is saved once more, and takes half again as long.
    context.array.saving.use_ocdbt = False
    return context


def _metadata(path: Path) -> dict[str, Any]:
    try:
        _check_store(path / ARRAYS / "state")
        with _context():
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
        with _context():
            tree = {name: wanted.get(name, ocp.PLACEHOLDER) for name in stored}
            restored = ocp.load(path / ARRAYS, tree)
    except Exception as error:
        raise _damaged(path, error) from None
    return {name: restored[name] for name in wanted}


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(f"{path / ARRAYS}: damaged or not complete: {reason}")
