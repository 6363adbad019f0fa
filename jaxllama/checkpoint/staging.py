"""Write files beside their target and rename them at the end: all of a target, or nothing.

A staging directory `.NAME.partial` holds the files and a journal of the tensors already in them.
A tensor is entered after its bytes are on the disk, so that an interrupted run can go on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from jaxllama.errors import CheckpointError, argument


class Staging:
    """The staging directory of one target.

    Args:
        target: file or directory that is to appear.
        plan: what is being written, in full: an interrupted run is resumed by an equal one only.
        overwrite: whether a target that exists is replaced; None where nobody can ask for that.

    Raises:
        CheckpointError: the target exists, another process is writing it, or it cannot be
            written.

    Attributes:
        files: directory that the files are written to.
        done: entries of the journal, of tensors that need not be written again.
    """

    def __init__(self, target: Path, plan: dict[str, Any], *, overwrite: bool | None):
        self.target, self.overwrite = target, overwrite
        self.root = target.parent / f".{target.name}.partial"
        self.files = self.root / "files"
        if not self.root.exists():
            self._refuse_existing()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._journal: IO[str] = (self.root / "journal.jsonl").open("a+", encoding="utf-8")
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._settle()
        except BlockingIOError:
            self._journal.close()
            raise CheckpointError(f"{target}: another process is writing it") from None
        except OSError as error:
            raise self.unwritable(error) from error
        self._refuse_existing()
        self.done = self._resume(plan)

    def _refuse_existing(self) -> None:
        if self.overwrite or not _occupied(self.target):
            return
        if hasattr(self, "_journal"):
            self.close() if self._staged() else self.discard()
        ways = "remove it or choose another"
        if self.overwrite is not None:
            ways += f", or replace it with {argument('overwrite', True)}"
        raise CheckpointError(f"{self.target}: exists already; {ways}")

    def _staged(self) -> bool:
        return self.files.is_dir() and any(self.files.iterdir())

    def _settle(self) -> None:
        """Finish a renaming that a crash cut short, or undo it where the target is not there."""
        undo = not self.target.exists()
        for old in self.root.glob("old-*"):
            if undo:
                os.rename(old, self.target.with_name(old.name.removeprefix("old-")))
            elif old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()

    def _resume(self, plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
        self._journal.seek(0)
        first, *lines = self._journal.read().split("\n") or [""]
        # Where nothing is staged, a crash came between the renaming and the end.
        if first == json.dumps(plan) and self._staged():
            # A line cut off by a crash does not end in a newline; it is the last.
            return {entry["name"]: entry for entry in map(json.loads, lines[:-1])}
        try:
            shutil.rmtree(self.files, ignore_errors=True)
            self.files.mkdir()
            self._journal.truncate(0)
        except OSError as error:
            raise self.unwritable(error) from error
        return {}

    def begin(self, plan: dict[str, Any]) -> None:
        """Open the journal, once the files are there at full length."""
        self._append([plan])

    def record(self, entries: list[dict[str, Any]]) -> None:
        """Enter tensors whose bytes are on the disk."""
        self._append(entries)

    def _append(self, entries: list[dict[str, Any]]) -> None:
        self._journal.write("".join(json.dumps(entry) + "\n" for entry in entries))
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def commit(self, renames: dict[str, Path]) -> None:
        """Rename finished files to their places, in order, and remove the staging directory.

        What is replaced lies in the staging directory meanwhile: `_settle` puts it back after a
        failure or a crash.

        Args:
            renames: place of each entry of `files`; "." stands for the whole directory.
        """
        sync(self.files)
        if self.overwrite:
            # What makes the target loadable goes first here, and comes last below.
            for place in reversed(renames.values()):
                if place.exists():
                    os.rename(place, self.root / f"old-{place.name}")
        for name, place in renames.items():
            os.rename(self.files if name == "." else self.files / name, place)
        sync(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the staging directory and all in it."""
        self._journal.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def close(self) -> None:
        """Leave the staging directory for a later run to resume."""
        self._journal.close()

    def unwritable(self, error: OSError) -> CheckpointError:
        """Return the error for a target that cannot be written, and remove what there is of it."""
        reason = error.strerror or str(error)
        with suppress(OSError):
            self._settle()
        if hasattr(self, "_journal"):
            self.discard()
        else:
            shutil.rmtree(self.root, ignore_errors=True)
        left = "nothing is left of it"
        if self.root.exists():
            left = f"remove {self.root}, which is left of it"
        elif self.overwrite and self.target.exists():
            left = "what was there is as it was"
        return CheckpointError(f"{self.target}: cannot be written: {reason}; {left}")


def _occupied(target: Path) -> bool:
    """Whether something is there that a renaming would destroy; an empty directory is not."""
    try:
        return target.exists() and not (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{target}: cannot be written: {reason}") from error


def sync(directory: Path) -> None:
    """Flush a directory's entries to the disk, where the platform can."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
