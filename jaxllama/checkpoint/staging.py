"""Write files beside their target and rename them at the end: all of a target, or nothing.

A staging directory `.NAME.partial` holds the files and a journal of the tensors already in them.
A tensor is entered after its bytes are on the disk, so that an interrupted run can go on. The
directory's name can be guessed, so it is made for its owner alone, and one that is found there is
used only if nobody else can have had a hand in it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxllama.errors import CheckpointError, argument
from jaxllama.files import limits

_JOURNAL, _COMMITTING, _OLD = "journal.jsonl", "committing", "old-"
_OTHERS_WRITE, _OTHERS = 0o022, 0o077
NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """The staging directory of one target.

    Args:
        target: file or directory that is to appear.
        plan: what is being written, in full: an interrupted run is resumed by an equal one only.
        overwrite: whether a target that exists is replaced; None where nobody can ask for that.
        renames: place of each entry of `files`, the one that makes the target loadable last; "."
            stands for the whole directory, which goes to the target if nothing is given.
        is_entry: whether something in the journal is an entry of a tensor that is to be written.
        check: refuses to replace what lies at the places; called before the first is.

    Raises:
        CheckpointError: the target exists or is a link, another process is writing it, the staging
            directory may be somebody else's, or it cannot be written.

    Attributes:
        files: directory that the files are written to.
        done: entries of the journal, of tensors that need not be written again.
    """

    def __init__(
        self,
        target: Path,
        plan: dict[str, Any],
        *,
        overwrite: bool | None,
        renames: Mapping[str, Path] | None = None,
        is_entry: Callable[[Any], bool] = lambda entry: True,
        check: Callable[[], None] = lambda: None,
    ):
        self.target, self.overwrite = target, overwrite
        self._renames = {".": target} if renames is None else dict(renames)
        self._is_entry, self._check = is_entry, check
        self.root = target.parent / f".{target.name}.partial"
        self.files = self.root / "files"
        self._journal: int | None = None
        refuse_links(*self._renames.values())
        try:
            if not os.path.lexists(self.root):
                self._refuse_existing()
            self._enter()
            self._settle()
        except OSError as error:
            raise self.unwritable(error) from error
        self._refuse_existing()
        self.done = self._resume(plan)

    def _enter(self) -> None:
        """Make the staging directory, or see that the one there is ours; lock its journal."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(self.root, 0o700)
        path, busy = self.root / _JOURNAL, f"{self.target}: another process is writing it"
        for one in (self.root, path):
            if os.path.lexists(one):
                _refuse_foreign(one, self.root)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        journal = os.open(path, flags, 0o600)
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have finished meanwhile, and removed what was opened.
            if not os.path.samestat(os.fstat(journal), path.lstat()):
                raise CheckpointError(busy)
            _refuse_foreign_files(self.root)
        except (BlockingIOError, FileNotFoundError):
            os.close(journal)
            raise CheckpointError(busy) from None
        except BaseException:
            os.close(journal)
            raise
        self._journal = journal

    def _refuse_existing(self) -> None:
        there = [place for place in self._renames.values() if _occupied(place)]
        if self.overwrite or not there:
            return
        if self._journal is not None:
            self.close() if self._staged() else self.discard()
        ways = "remove it or choose another"
        if self.overwrite is not None:
            ways += f", or replace it with {argument('overwrite', True)}"
        raise CheckpointError(f"{there[-1]}: exists already; {ways}")

    def _staged(self) -> bool:
        return self.files.is_dir() and any(self.files.iterdir())

    def _settle(self) -> None:
        """Finish a renaming that a crash cut short, or undo it where the target is not there."""
        undo = not os.path.lexists(self.target)
        if undo and (self.root / _COMMITTING).exists():
            for name, place in self._renames.items():
                if place != self.target and not (self.files / name).exists():
                    os.rename(place, self.files / name)
        for old in self.root.glob(f"{_OLD}*"):
            if undo:
                os.rename(old, self.target.with_name(old.name.removeprefix(_OLD)))
            else:
                _remove(old)
        (self.root / _COMMITTING).unlink(missing_ok=True)

    def _resume(self, plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
        try:
            # Where nothing is staged, a crash came between the renaming and the end.
            entries = self._entries(plan) if self._staged() else None
            if not entries:
                self.restart()
        except OSError as error:
            raise self.unwritable(error) from error
        return entries or {}

    def _entries(self, plan: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
        """Return what the journal says is done; None if it is of another plan, or garbage."""
        path = self.root / _JOURNAL
        if path.stat().st_size > limits.INDEX_BYTES:
            return None
        first, *lines = path.read_bytes().split(b"\n")
        if first != _line(plan):
            return None
        try:
            # A line cut off by a crash does not end in a newline; it is the last.
            entries = [json.loads(line) for line in lines[:-1]]
        except (ValueError, RecursionError):
            return None
        if not all(isinstance(entry, dict) and self._is_entry(entry) for entry in entries):
            return None
        return {entry["name"]: entry for entry in entries}

    def restart(self) -> None:
        """Forget what an earlier run did."""
        assert self._journal is not None
        _remove(self.files)
        self.files.mkdir()
        os.ftruncate(self._journal, 0)
        self.done = {}

    def begin(self, plan: dict[str, Any]) -> None:
        """Open the journal, once the files are there at full length."""
        self._append([plan])

    def record(self, entries: list[dict[str, Any]]) -> None:
        """Enter tensors whose bytes are on the disk."""
        self._append(entries)

    def _append(self, entries: list[dict[str, Any]]) -> None:
        assert self._journal is not None
        content = b"".join(_line(entry) + b"\n" for entry in entries)
        while content:
            content = content[os.write(self._journal, content) :]
        os.fsync(self._journal)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file whole, anew if an earlier run did; it is on the disk then."""
        path = self.files / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | NEW_FILE, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        """Rename finished files to their places, in order, and remove the staging directory.

        What is replaced lies in the staging directory meanwhile: `_settle` puts it back after a
        failure or a crash.

        Raises:
            CheckpointError: something came to lie at a place that must not be replaced.
        """
        places = self._renames.values()
        sync(self.files)
        refuse_links(*places)
        self._refuse_existing()
        self._check()
        os.close(os.open(self.root / _COMMITTING, os.O_WRONLY | NEW_FILE, 0o600))
        if self.overwrite:
            # What makes the target loadable goes first here, and comes last below.
            for place in reversed(places):
                if os.path.lexists(place):
                    os.rename(place, self.root / f"{_OLD}{place.name}")
        for name, place in self._renames.items():
            os.rename(self.files if name == "." else self.files / name, place)
        sync(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the staging directory and all in it."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Leave the staging directory for a later run to resume."""
        journal, self._journal = self._journal, None
        if journal is not None:
            os.close(journal)

    def unwritable(self, error: OSError) -> CheckpointError:
        """Return the error for a target that cannot be written, and remove what there is of it."""
        reason, ours = error.strerror or str(error), self._journal is not None
        if ours:
            with suppress(OSError):
                self._settle()
            self.discard()
        with suppress(OSError):  # made, and no journal in it
            os.rmdir(self.root)
        left = "nothing is left of it"
        if ours and self.root.exists():
            left = f"remove {self.root}, which is left of it"
        elif self.overwrite and os.path.lexists(self.target):
            left = "what was there is as it was"
        return CheckpointError(f"{self.target}: cannot be written: {reason}; {left}")


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode()


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _refuse_foreign_files(root: Path) -> None:
    """Refuse what lies in a staging directory, see `_refuse_foreign`."""
    waiting = list(root.iterdir())
    while waiting:
        path = waiting.pop()
        _refuse_foreign(path, root)
        if path.is_dir():
            waiting += path.iterdir()


def _refuse_foreign(path: Path, root: Path) -> None:
    """Refuse a file or directory of the staging that another user could have had a hand in.

    Raises:
        CheckpointError: it is a link, another user's, or others may write to it.
    """
    found = path.lstat()
    within = path.relative_to(root).parts
    directory, mode = stat.S_ISDIR(found.st_mode), stat.S_IMODE(found.st_mode)
    closed = within and not root.lstat().st_mode & _OTHERS
    why = ""
    if stat.S_ISLNK(found.st_mode):
        why = "is a symbolic link"
    elif within and within[0].startswith(_OLD):
        pass  # what is replaced lies here as it was, whoever made it
    elif found.st_uid != os.geteuid():
        why = f"belongs to another user ({found.st_uid})"
    elif directory and mode & _OTHERS_WRITE and not closed:
        why = f"can be written to by others (mode {mode:o})"
    elif not directory and (not within or not stat.S_ISREG(found.st_mode)):
        why = f"is no {'regular file' if within else 'directory'}"
    elif not directory and found.st_nlink > 1:
        why = "has another name elsewhere (a hard link)"
    if why:
        raise CheckpointError(
            f"{path}: {why}, and was not made by a conversion that was interrupted; nothing is "
            f"written there: remove {root} and start again"
        )


def refuse_links(*places: Path) -> None:
    """Refuse to write to a place that is a link, dangling or not.

    Raises:
        CheckpointError: one is, or its name cannot be used.
    """
    for place in places:
        try:
            leads_to = os.readlink(place) if stat.S_ISLNK(place.lstat().st_mode) else None
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{place}: cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from error
        if leads_to is not None:
            raise CheckpointError(
                f"{place}: is a symbolic link (to {leads_to}); give the place itself that is to be "
                "written, or remove the link"
            )


def _occupied(target: Path) -> bool:
    """Whether something is there that a renaming would destroy; an empty directory is not."""
    return os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))


def sync(directory: Path) -> None:
    """Flush a directory's entries to the disk, where the platform can."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
