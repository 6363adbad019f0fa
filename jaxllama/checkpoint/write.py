"""Stream tensors of one checkpoint into the files planned for another."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.digests import MANIFEST, Manifest, digest
from jaxllama.checkpoint.dtypes import cast, lost
from jaxllama.checkpoint.layout import Layout
from jaxllama.checkpoint.load import raise_problems, value_problems
from jaxllama.checkpoint.staging import Staging

Progress = Callable[[str, int], None]
# How much may be written before it is flushed to the disk and entered in the journal.
_FLUSH_BYTES = 1 << 29


class Sink(Protocol):
    """A target's files in the staging directory."""

    def create(self) -> None:
        """Make room for all tensors."""

    def resume(self) -> None:
        """Open what an earlier run created."""

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one tensor, in canonical layout and its new dtype."""

    def flush(self) -> None:
        """Put all that was written on the disk."""

    def finish(self) -> None:
        """Close everything; the files are complete."""


class FileSink:
    """Files with a planned layout."""

    def __init__(self, layout: Layout, directory: Path):
        self.layout, self.directory = layout, directory
        self._open: dict[str, int] = {}

    def create(self) -> None:
        """Create the files: small ones whole, large ones at full length with their frames."""
        for name, content in self.layout.small.items():
            (self.directory / name).write_bytes(content)
        for name, frame in self.layout.frames.items():
            descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o644)
            self._open[name] = descriptor
            # Takes the space now, so that a full disk is known before hours of work.
            os.posix_fallocate(descriptor, 0, max(1, self.layout.lengths[name]))
            for offset, content in frame:
                _write_all(descriptor, memoryview(content), offset)

    def resume(self) -> None:
        """Open the files of an earlier run."""
        for name in self.layout.frames:
            self._open[name] = os.open(self.directory / name, os.O_RDWR)

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one tensor to all its places."""
        for piece in self.layout.pieces[name]:
            stored = np.ascontiguousarray(piece.transform(values)).reshape(-1).view(np.uint8)
            _write_all(self._open[piece.file], stored.data, piece.offset)

    def flush(self) -> None:
        """Put all that was written on the disk."""
        for descriptor in self._open.values():
            os.fsync(descriptor)

    def finish(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


@dataclass
class Written:
    """What came of a conversion.

    Attributes:
        target: what was written.
        nbytes: size of the weights in bytes, as written.
        digests: by canonical name.
        losses: for each tensor that a cast changed: elements changed, of how many, and the
            largest absolute change.
        resumed: tensors that an interrupted run had already written.
    """

    target: Path
    nbytes: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    losses: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    resumed: int = 0


def stream(
    checkpoint: Checkpoint,
    dtypes: Mapping[str, np.dtype],
    sink: Sink,
    staging: Staging,
    plan: dict[str, Any],
    progress: Progress,
) -> Written:
    """Write every tensor, check its values on the way, and return what was written.

    One tensor at a time is in memory, twice if it is cast. Hashing runs beside writing.

    Raises:
        CheckpointError: tensors are NaN or infinite, before or after the cast (all in one
            message), or something cannot be read.
        OSError: something cannot be written.
    """
    if staging.done:
        sink.resume()
    else:
        sink.create()
        staging.begin(plan)
    result = Written(staging.target, resumed=len(staging.done))
    problems: list[str] = []
    pending: list[dict[str, Any]] = []
    unflushed = 0
    with ThreadPoolExecutor(1) as pool:
        for name, dtype in dtypes.items():
            entry = staging.done.get(name)
            if entry is None:
                entry, rounded = _converted(checkpoint, name, dtype, problems)
                if not problems:
                    hashed = pool.submit(digest, rounded)
                    sink.write(name, rounded)
                    entry["digest"] = hashed.result()
                    pending.append(entry)
                    unflushed += entry["nbytes"]
                    if unflushed >= _FLUSH_BYTES:
                        _settle(sink, staging, pending)
                        unflushed = 0
                del rounded
            result.nbytes += entry["nbytes"]
            result.digests[name] = entry.get("digest", "")
            if entry["lost"][0]:
                result.losses[name] = tuple(entry["lost"])
            progress(name, entry["nbytes"])
    raise_problems(checkpoint, problems)
    _settle(sink, staging, pending)
    sink.finish()
    return result


def _settle(sink: Sink, staging: Staging, pending: list[dict[str, Any]]) -> None:
    sink.flush()
    staging.record(pending)
    pending.clear()


def _converted(
    checkpoint: Checkpoint, name: str, dtype: np.dtype, problems: list[str]
) -> tuple[dict[str, Any], np.ndarray]:
    values = checkpoint.read(name)
    found = value_problems(name, values)
    rounded = cast(values, dtype)
    changed: tuple[int, float] = (0, 0.0)
    if rounded is not values and not found:
        changed = lost(values, rounded)
        if value_problems(name, rounded):
            largest = max(float(values.max()), -float(values.min()))
            found = [f"{name}: values up to {largest:g} overflow in {dtype}"]
    problems += found
    size, nbytes = int(values.size), int(rounded.nbytes)
    return {"name": name, "nbytes": nbytes, "lost": [changed[0], size, changed[1]]}, rounded


def write_small(checkpoint: Checkpoint, layout: Layout, target: Path) -> None:
    """Write a checkpoint as planned into a directory; `jaxllama.convert` does more.

    Raises:
        CheckpointError: the target exists or cannot be written, or a tensor is NaN or infinite.
    """
    dtypes = {name: checkpoint.tensors[name].dtype for name in layout.pieces}
    run(checkpoint, dtypes, lambda files: FileSink(layout, files), target, {}, {".": target})


def run(
    checkpoint: Checkpoint,
    dtypes: Mapping[str, np.dtype],
    make_sink: Callable[[Path], Sink],
    target: Path,
    plan: dict[str, Any],
    renames: Mapping[str, Path],
    *,
    overwrite: bool = False,
    progress: Progress = lambda name, nbytes: None,
    hf_config: Mapping[str, Any] | None = None,
) -> Written:
    """Write a target through its staging directory.

    Args:
        checkpoint: what is read.
        dtypes: of every tensor once written, by canonical name.
        make_sink: given the staged files' directory, returns what writes them.
        target: file or directory that is to appear.
        plan: description of all of this, by which an interrupted run is recognised.
        renames: place of each staged file, the one that makes the target loadable last; "." is
            the whole directory.
        overwrite: whether a target that exists is replaced.
        progress: called with a tensor's name and bytes after each.
        hf_config: for the manifest; no manifest is written without it.

    Raises:
        CheckpointError: see `stream`; or the target cannot be written.
    """
    staging = Staging(target, plan, overwrite=overwrite)
    try:
        result = stream(checkpoint, dtypes, make_sink(staging.files), staging, plan, progress)
        if hf_config is not None:
            # Beside a target that is one file, in one that is a directory.
            name = MANIFEST if "." in renames else f"{target.name}.{MANIFEST}"
            (staging.files / name).write_bytes(Manifest(result.digests, hf_config).to_json())
        staging.commit(dict(renames))
    except OSError as error:
        raise staging.unwritable(error) from error
    except Exception:
        staging.discard()
        raise
    except BaseException:  # interrupted: a later run resumes
        staging.close()
        raise
    return result
