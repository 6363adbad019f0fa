"""Files that are written: refused before the work where they cannot be, and whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jaxllama.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place, then renamed.

    A new file gets the permissions the user's umask leaves, an existing one keeps its own. What is
    no regular file (a pipe), or what standard output leads to, is written to as it is.

    Raises:
        InputError: the file cannot be written, or is a link to what is no report.
    """
    _refuse_link(path)
    try:
        if path.exists() and (_is_standard_output(path) or not path.is_file()):
            # A file that a verdict was printed to would lose it, opened anew or replaced.
            to = 1 if _is_standard_output(path) else path
            with (
                suppress(BrokenPipeError),  # whose reader has had enough
                open(to, "w", encoding="utf-8", closefd=to != 1) as file,
            ):
                file.write(text)
            return
        path = path.resolve()  # the file a link leads to, not the link
        beside = path.parent / f".{secrets.token_hex(8)}.tmp"
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                if path.exists():
                    os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
                file.write(text)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


_SYSTEMS = ("/dev/", "/proc/")  # whose links are to what a process has open
_LOOKED_AT = 512


def _refuse_link(path: Path) -> None:
    """Refuse a link, which anybody may have made, unless to an older report.

    Raises:
        InputError: it leads to another file, or to nothing.
    """
    try:
        followed = str(path.absolute()).startswith(_SYSTEMS) or not path.is_symlink()
        if followed or _is_standard_output(path) or (path.exists() and not path.is_file()):
            return
        if path.is_file() and _is_report(path):
            return
        leads = os.readlink(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    raise InputError(
        f"{path}: is a symbolic link to {leads}, which is no older report; give that name itself, "
        "or remove the link"
    )


def _is_report(path: Path) -> bool:
    """Whether a file is a report of ours, or empty."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    marks = (b'"schema_version"', b"sarif")
    return not head or head.lower().startswith(_REPORTS) or any(mark in head for mark in marks)


def check_writable(path: Path) -> None:
    """Refuse a report path before minutes of work are spent on it.

    Raises:
        InputError: it is a directory, a link to what is no report, or no usable name, or its
            directory is missing or cannot be written to.
    """
    if path == Path("-"):
        raise InputError("-: a report is a file; give a name, or /dev/stdout")
    _refuse_link(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory; give a file to write the report to")
        if not path.parent.is_dir():
            raise InputError(f"{path}: no directory {path.parent}; make it first")
        regular = path.is_file() or not path.exists()
        needed = [path.resolve().parent] if regular else []
        if not all(os.access(one, os.W_OK) for one in [*needed, *([path] * path.exists())]):
            raise InputError(f"{path}: no permission to write there")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


# How our reports of each kind begin.
_REPORTS = (b'{\n "schema_version"', b"<!doctype html", b"<?xml")


def check_outputs(*paths: Path | None, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse report paths before minutes of work are spent on them.

    Args:
        paths: where reports are to go.
        inputs: files and directories that are read.

    Raises:
        InputError: one cannot be written to or would destroy what is read, or two are the same
            file.
    """
    given = [path for path in paths if path is not None]
    for path in given:
        check_writable(path)
        for read in map(Path, inputs):
            if _destroys(path, read):
                raise InputError(f"{path}: is a file of {read}, which is read; choose another")
    places = [path.resolve() for path in given]
    if len(set(places)) < len(places):
        twice = next(path for path in given if places.count(path.resolve()) > 1)
        raise InputError(f"{twice}: two reports cannot be one file; give each its own")


def _destroys(path: Path, read: Path) -> bool:
    """Whether a report would replace an input, or a file in it that is no report."""
    try:
        if not path.is_file() or not read.exists():
            return False
        if path.samefile(read):
            return True
        # A link's place and what it leads to: the report would replace the latter.
        within = {*path.absolute().parents, *path.resolve().parents}
        if not any(folder.samefile(read) for folder in within):
            return False
        with path.open("rb") as file:
            return not file.read(64).lower().startswith(_REPORTS)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False
