"""Write Orbax directories: conversions in batches, and arrays that lie on devices."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.hf.read import CONFIG
from jaxllama.checkpoint.hf.write import companion_files, hf_config
from jaxllama.checkpoint.layout import byte_size
from jaxllama.checkpoint.orbax.read import ARRAYS, context
from jaxllama.checkpoint.staging import NEW_FILE, refuse_links
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError
from jaxllama.sharding.hosts import meet

# A save has a fixed cost of about a tenth of a second.
_BATCH_BYTES = 1 << 28
# TensorStore makes errors of the system into text, this at its end.
_ERROR_CODE = re.compile(r"\[os_error_code='(\d+)'\]")
# After a failure: longer than writing one more chunk takes.
_QUIET_SECONDS = 0.5


def save_sharded(
    path: Path, tensors: Mapping[str, jax.Array], checkpoint: Checkpoint | LlamaConfig
) -> None:
    """Save arrays on devices, each host its own shards, onto files that all hosts see.

    The directory appears when it is complete: until then it is beside, as `.NAME.saving`.

    Args:
        path: directory that is to appear.
        tensors: by canonical name, in canonical layout.
        checkpoint: whose configuration and tokenizer go beside them, or the configuration alone.

    Raises:
        CheckpointError: the directory exists or cannot be written.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    first, staged = jax.process_index() == 0, path.with_name(f".{path.name}.saving")
    if path.exists():
        raise CheckpointError(f"{path}: exists already; remove it or choose another")
    refuse_links(path, staged)
    try:
        if first and staged.exists():  # of a run that was killed
            shutil.rmtree(staged)
        meet(f"begin {path}")
        with _saving(path):
            ocp.save(staged.absolute() / ARRAYS, dict(tensors))
        if first:
            for name, content in _small(checkpoint, tensors).items():
                with os.fdopen(os.open(staged / name, os.O_WRONLY | NEW_FILE, 0o666), "wb") as file:
                    file.write(content)
            staged.rename(path)
        meet(f"saved {path}")
    except OSError as error:
        reason = error.strerror or str(error)
        if first:
            shutil.rmtree(staged, ignore_errors=True)
        raise CheckpointError(f"{path}: cannot be written: {reason}") from error


def _small(checkpoint: Checkpoint | LlamaConfig, tensors: Mapping[str, Any]) -> dict[str, bytes]:
    if isinstance(checkpoint, LlamaConfig):
        return {CONFIG: json.dumps(checkpoint.to_hf(), indent=2).encode()}
    dtypes = {name: np.dtype(tensor.dtype) for name, tensor in tensors.items()}
    config = json.dumps(hf_config(checkpoint, dtypes), indent=2).encode()
    return {CONFIG: config, **companion_files(checkpoint)}


class OrbaxSink:
    """Writes tensors of a conversion in batches, each saved atomically while the next is read."""

    heads: Mapping[str, str] = MappingProxyType({})  # all beside the weights is in small files
    flush_cost = 8  # a tenth of a second

    def __init__(self, checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype], directory: Path):
        self._checkpoint, self._dtypes = checkpoint, dtypes
        self._directory = directory.absolute()  # Orbax takes no other
        config = json.dumps(hf_config(checkpoint, dtypes), indent=2).encode()
        self.small = {CONFIG: config, **companion_files(checkpoint)}
        self._batch: dict[str, np.ndarray] = {}
        self._saving: Any = None
        self._resumed = False
        self._lock = threading.Lock()

    def create(self) -> None:
        """See that there is room for the arrays."""
        needed = sum(
            byte_size(self._checkpoint.tensors[name].shape, dtype)
            for name, dtype in self._dtypes.items()
        )
        if needed > shutil.disk_usage(self._directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def resume(self) -> bool:
        """Take up what an earlier run saved; False if nothing is there."""
        self._resumed = any(self._directory.glob(f"{ARRAYS}*"))
        return self._resumed

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
        import orbax.checkpoint.experimental.v1 as ocp

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
        import orbax.checkpoint.experimental.v1 as ocp

        with _saving(self._directory):
            try:
                ocp.partial.save(self._directory / ARRAYS, batch)
            except Exception as error:
                if type(error).__name__ != "PartialSaveReplacementError":  # private to Orbax
                    raise

    def finish(self) -> None:
        """Make the saved batches one checkpoint."""
        import orbax.checkpoint.experimental.v1 as ocp

        if not (self._directory / ARRAYS).exists():  # else a crash came right after
            with _saving(self._directory):
                ocp.partial.finalize(self._directory / ARRAYS)

    def abort(self) -> None:
        """Remove the arrays for good: after a failure TensorStore's threads go on for a while."""
        with suppress(Exception):
            self._wait()
        last = time.monotonic()
        while time.monotonic() < last + _QUIET_SECONDS:
            for path in self._directory.glob(f"{ARRAYS}*"):
                shutil.rmtree(path, ignore_errors=True)
                last = time.monotonic()
            time.sleep(0.02)


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
        with context():
            yield
    except OSError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        if code := _ERROR_CODE.search(said):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        reason = said.splitlines()[0][:200]
        raise CheckpointError(f"{directory}: cannot be written: {reason}") from error
