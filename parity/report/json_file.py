"""The result as JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from jaxllama.errors import InputError
from parity.result import Result


def write(result: Result, path: Path) -> None:
    """Write a result's document to `path`."""
    write_text(path, json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place, then renamed.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Refuse a report path before minutes of work are spent on it.

    Raises:
        InputError: it is a directory or no usable name, or its directory is missing or cannot be
            written to.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory; give a file to write the report to")
        if not path.parent.is_dir():
            raise InputError(f"{path}: no directory {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise InputError(f"{path}: no permission to write there")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
