"""Stream tensors of one checkpoint into the files planned for another."""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import raise_problems, value_problems
from jaxllama.checkpoint.dtypes import Loss, cast, lost
from jaxllama.checkpoint.layout import Layout, byte_size
from jaxllama.checkpoint.manifest import MANIFEST, Manifest, digest, digests_of
from jaxllama.checkpoint.staging import NEW_FILE, Staging

Progress = Callable[[str, int], None]
# Given a tensor's name, its values and the dtype it is to have, returns what it becomes.
Rounding = Callable[[str, np.ndarray, np.dtype], np.ndarray]
# After so many bytes, or seconds, what was written is flushed to the disk beside the writing, and
# entered in the journal; the writing waits for that where it is as many times ahead.
_FLUSH_BYTES, _FLUSH_SECONDS, _FLUSHES_AHEAD = 1 << 24, 1.0, 32
# Tensors up to this size are read while the one before is written.
_AHEAD_BYTES = 1 << 28
_DIGEST = re.compile("[0-9a-f]{64}")


class Sink(Protocol):
    """A target's files in the staging directory."""

    @property
    def small(self) -> Mapping[str, bytes]:
        """Return the whole contents of the files beside the weights, by name."""

    @property
    def heads(self) -> Mapping[str, str]:
        """Return digests of what files of weights say besides them, where that is not `small`."""

    @property
    def flush_cost(self) -> int:
        """Return what a flush costs, against that of files: they come as much less often."""

    def create(self) -> None:
        """Make room for all tensors."""

    def resume(self) -> bool:
        """Open what an earlier run created; False if it is not all there."""

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one tensor, in canonical layout and its new dtype."""

    def flush(self) -> None:
        """Put all that was written on the disk."""

    def finish(self) -> None:
        """Close everything; the files are complete."""

    def abort(self) -> None:
        """Let go of the files after a failure; they are about to be removed."""


class FileSink:
    """Files with a planned layout."""

    def __init__(self, layout: Layout, directory: Path):
        self.layout, self.directory = layout, directory
        self.small, self.heads, self.flush_cost = layout.small, layout.heads, 1
        self._open: dict[str, int] = {}

    def create(self) -> None:
        """Create the files at full length, with their frames."""
        for name, frame in self.layout.frames.items():
            descriptor = os.open(self.directory / name, os.O_RDWR | NEW_FILE, 0o644)
            self._open[name] = descriptor
            # Takes the space now, so that a full disk is known before hours of work.
            os.posix_fallocate(descriptor, 0, max(1, self.layout.lengths[name]))
            for offset, content in frame:
                _write_all(descriptor, memoryview(content), offset)

    def resume(self) -> bool:
        """Open the files of an earlier run; False if they are not as it would have left them."""
        for name in self.layout.frames:
            path, length = self.directory / name, max(1, self.layout.lengths[name])
            if not path.is_file() or path.stat().st_size != length:
                self.finish()
                return False
            self._open[name] = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        return True

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one tensor to all its places."""
        for piece in self.layout.pieces[name]:
            stored = np.ascontiguousarray(piece.transform(values)).reshape(-1).view(np.uint8)
            file = self._open[piece.file]
            _write_all(file, stored.data, piece.offset)
            if piece.checksums:
                checksum = zlib.crc32(stored.data).to_bytes(4, "little")
                for place in piece.checksums:
                    _write_all(file, memoryview(checksum), place)

    def flush(self) -> None:
        """Put all that was written on the disk."""
        for descriptor in self._open.values():
            os.fsync(descriptor)

    def finish(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])

    abort = finish


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
        losses: of each tensor that rounding changed.
        resumed: tensors that an interrupted run had already written.
    """

    target: Path
    nbytes: int
    digests: dict[str, str]
    losses: dict[str, Loss]
    resumed: int


def stream(
    checkpoint: Checkpoint,
    dtypes: Mapping[str, np.dtype],
    sink: Sink,
    staging: Staging,
    plan: dict[str, Any],
    progress: Progress,
    rounding: Rounding,
) -> Written:
    """Write every tensor, check its values on the way, and return what was written.

    One tensor at a time is in memory, twice if it is cast, and the next one if it is not large.
    Reading ahead, hashing and flushing run beside writing.

    Raises:
        CheckpointError: tensors are NaN or infinite, before or after the cast (all in one
            message), or something cannot be read.
        OSError: something cannot be written.
    """
    if staging.done and not sink.resume():
        staging.restart()
    for name, content in sink.small.items():
        staging.write(name, content)
    if not staging.done:
        sink.create()
        staging.begin(plan)
    entries = dict(staging.done)
    problems: list[str] = []
    for entry in entries.values():
        progress(entry["name"], entry["nbytes"])
    with ThreadPoolExecutor(3) as pool:
        journal = _Journal(sink, staging, pool)
        for converted in _read_ahead(checkpoint, dtypes, staging, pool, rounding):
            entry, name = converted.entry, converted.entry["name"]
            problems += converted.problems
            if not problems:
                hashed = pool.submit(digest, converted.values)
                sink.write(name, converted.values)
                entries[name] = entry | {"digest": hashed.result()}
                journal.add(entries[name])
            progress(name, entry["nbytes"])
            del converted
        raise_problems(checkpoint, problems)
        journal.settle()
    sink.finish()
    return Written(
        target=staging.target,
        nbytes=sum(entry["nbytes"] for entry in entries.values()),
        digests={name: entries[name]["digest"] for name in dtypes},
        losses={name: loss for name in dtypes if (loss := Loss(**entries[name]["lost"])).changed},
        resumed=len(staging.done),
    )


def _read_ahead(
    checkpoint: Checkpoint,
    dtypes: Mapping[str, np.dtype],
    staging: Staging,
    pool: ThreadPoolExecutor,
    rounding: Rounding,
) -> Iterator[_Converted]:
    """Yield the tensors still to be written; while one is, the next is read if it is not large."""
    names = [name for name in dtypes if name not in staging.done]

    def convert(name: str) -> _Converted:
        return _converted(checkpoint, name, dtypes[name], rounding)

    ahead: Future[_Converted] | None = None
    for name, following in zip_longest(names, names[1:]):
        converted = ahead.result() if ahead else convert(name)
        ahead = None
        if following and checkpoint.tensors[following].nbytes <= _AHEAD_BYTES:
            ahead = pool.submit(convert, following)
        yield converted
        del converted  # before the next is read


class _Journal:
    """Flushes what was written, and only then enters it in the journal."""

    def __init__(self, sink: Sink, staging: Staging, pool: ThreadPoolExecutor):
        self._sink, self._staging, self._pool = sink, staging, pool
        self._pending: list[dict[str, Any]] = []
        self._flushing: Future[None] | None = None
        self._last = time.monotonic()

    def add(self, entry: dict[str, Any]) -> None:
        self._pending.append(entry)
        waiting, cost = sum(one["nbytes"] for one in self._pending), self._sink.flush_cost
        late = time.monotonic() > self._last + cost * _FLUSH_SECONDS
        due = late or waiting >= cost * _FLUSH_BYTES
        idle = self._flushing is None or self._flushing.done()
        if due and (idle or waiting >= _FLUSHES_AHEAD * _FLUSH_BYTES):
            self._start()

    def settle(self) -> None:
        self._start()
        if self._flushing is not None:
            self._flushing.result()

    def _start(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
        entries, self._pending = self._pending, []
        self._last = time.monotonic()
        self._flushing = self._pool.submit(self._flush, entries)

    def _flush(self, entries: list[dict[str, Any]]) -> None:
        self._sink.flush()
        self._staging.record(entries)


@dataclass(frozen=True)
class _Converted:
    """A tensor in its new dtype, with its journal entry."""

    entry: dict[str, Any]
    values: np.ndarray
    problems: list[str]


def _converted(
    checkpoint: Checkpoint, name: str, dtype: np.dtype, rounding: Rounding
) -> _Converted:
    values = checkpoint.read(name)
    problems = value_problems(name, values)
    rounded = values if problems else rounding(name, values, dtype)
    loss = Loss(0, int(values.size), 0.0, 0.0)
    if rounded is not values:
        loss = lost(values, rounded)
        if value_problems(name, rounded):
            largest = max(float(values.max()), -float(values.min()))
            problems = [
                f"{name}: values up to {largest:g} overflow in {dtype}; "
                "bfloat16 and float32 hold them"
            ]
    entry = {"name": name, "nbytes": int(rounded.nbytes), "lost": vars(loss)}
    return _Converted(entry, rounded, problems)


def _is_entry(entry: Any, checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> bool:
    """Whether something in a journal is what `stream` enters of one of its tensors."""
    match entry:
        case {"name": str(name), "nbytes": int(nbytes), "digest": str(found), "lost": dict(loss)}:
            return (
                name in dtypes
                and nbytes == byte_size(checkpoint.tensors[name].shape, dtypes[name])
                and _DIGEST.fullmatch(found) is not None
                and loss.keys() == Loss.__annotations__.keys()
                and all(type(value) in (int, float) for value in loss.values())
            )
    return False


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
    check: Callable[[], None] = lambda: None,
    hf_config: Mapping[str, Any] | None = None,
    rounding: Rounding = lambda name, values, dtype: cast(values, dtype),
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
        check: refuses to replace what lies at the target by the end.
        hf_config: for the manifest; no manifest is written without it.
        rounding: what tensors become; cast to their dtype if not given.

    Raises:
        CheckpointError: see `stream`; or the target cannot be written.
    """
    beside = [] if "." in renames else [f"{target.name}.{MANIFEST}"]
    files.check_new_name(target, f".{target.name}.partial", *beside)
    staging = Staging(
        target,
        plan,
        overwrite=overwrite,
        renames=renames,
        is_entry=lambda entry: _is_entry(entry, checkpoint, dtypes),
        check=check,
    )
    sink: Sink | None = None
    try:
        sink = make_sink(staging.files)
        result = stream(checkpoint, dtypes, sink, staging, plan, progress, rounding)
        if hf_config is not None:
            # Beside a target that is one file, in one that is a directory.
            name = MANIFEST if "." in renames else f"{target.name}.{MANIFEST}"
            manifest = Manifest(
                result.digests, hf_config, digests_of(sink.small), list(sink.heads.values())
            )
            staging.write(name, manifest.to_json())
        staging.commit()
    except Exception as error:
        if sink is not None:
            sink.abort()
        if isinstance(error, OSError):
            raise staging.unwritable(error) from error
        staging.discard()
        raise
    except BaseException:  # interrupted: a later run resumes
        staging.close()
        raise
    return result
