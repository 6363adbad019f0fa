"""Orbax: sharded arrays that restore onto any mesh, configuration and tokenizer beside them.

Tensors are saved one by one under canonical names, so that neither saving nor restoring holds more
than asked for, and in chunks, so that a host reads only the slices of its own devices.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
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
from jaxllama.checkpoint.names import HEAD, canonical_names
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError

ARRAYS = "arrays"
_CHUNK_BYTES = 32 << 20
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
        # Its own metadata as the wish: an array of the host, as it was saved.
        return np.asarray(_restore(path, stored, {names[name]: stored[names[name]]})[names[name]])

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
    """Writes tensors of a conversion in batches, each saved atomically."""

    flushes_beside = False

    def __init__(self, checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype], directory: Path):
        self._checkpoint, self._dtypes, self._directory = checkpoint, dtypes, directory
        self._batch: dict[str, np.ndarray] = {}

    def create(self) -> None:
        """Write the small files."""
        config = json.dumps(hf_config(self._checkpoint, self._dtypes), indent=2).encode()
        for name, content in {CONFIG: config, **companion_files(self._checkpoint)}.items():
            (self._directory / name).write_bytes(content)

    def resume(self) -> None:
        """Take up what an earlier run saved."""

    def write(self, name: str, values: np.ndarray) -> None:
        """Keep a tensor for the next batch."""
        waiting = sum(tensor.nbytes for tensor in self._batch.values())
        if waiting + values.nbytes > _BATCH_BYTES:
            self.flush()
        self._batch[name] = values

    def flush(self) -> None:
        """Save the batch."""
        batch, self._batch = self._batch, {}
        if batch and not self._save(batch):
            for name, values in batch.items():
                self._save({name: values})

    def _save(self, batch: dict[str, np.ndarray]) -> bool:
        """Save tensors; False if one of them is there already.

        That happens after a crash between a save and its entry in the journal. What is there is
        whole, since every save is atomic, and the same, since the journal's plan is.
        """
        try:
            with _context():
                ocp.partial.save(self._directory / ARRAYS, batch)
        except Exception as error:
            if type(error).__name__ != "PartialSaveReplacementError":  # private to Orbax
                raise
            return False
        return True

    def finish(self) -> None:
        """Make the saved batches one checkpoint."""
        if not (self._directory / ARRAYS).exists():  # else a crash came right after
            with _context():
                ocp.partial.finalize(self._directory / ARRAYS)


def _context() -> ocp.Context:
    # Orbax logs a dozen lines for every save.
    logging.getLogger("absl").setLevel(logging.ERROR)
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
    links = [entry for entry in (directory, *directory.rglob("*")) if entry.is_symlink()]
    if links:
        raise CheckpointError(
            f"{links[0]}: is a symbolic link; the arrays of a checkpoint belong in its directory"
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
