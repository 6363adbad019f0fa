"""The result as JSON; and writing any report whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from jaxllama.errors import InputError
from parity.result import Result


def write(result: Result, path: Path) -> None:
    """Write a result's document to `path`."""
    write_text(path, json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place, then renamed.

    A new file gets the permissions the user's umask leaves, an existing one keeps its own. What is
    no regular file (a pipe), or what standard output leads to, is written to as it is.

    Raises:
        InputError: the file cannot be written.
    """
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


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def check_writable(path: Path) -> None:
    """Refuse a report path before minutes of work are spent on it.

    Raises:
        InputError: it is a directory or no usable name, or its directory is missing or cannot be
            written to.
    """
    if path == Path("-"):
        raise InputError("-: a report is a file; give a name, or /dev/stdout")
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
