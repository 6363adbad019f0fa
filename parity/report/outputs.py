"""Which files a result is written to: all of them refused before the work, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxllama.errors import InputError
from jaxllama.interrupt import on_interrupt
from parity.report import json_file
from parity.result import Result

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
        json_file.check_writable(path)
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


def write_report(
    result: Result,
    *,
    json: str | Path | None = None,
    html: str | Path | None = None,
    junit: str | Path | None = None,
) -> None:
    """Write a result to files, each whole or not at all.

    Args:
        result: of `parity.run`.
        json: the versioned document, for programs.
        html: one page that needs no network and no other file, for people.
        junit: test cases, one a layer, for a CI's test view.

    Raises:
        InputError: a file cannot be written.
    """
    places = [None if path is None else Path(path) for path in (json, html, junit)]
    check_outputs(*places)
    from parity.report import html_file, junit_file

    written: list[str] = []
    with on_interrupt(lambda: f"{', '.join(written) or 'nothing'} was written"):
        for path, kind in zip(places, (json_file, html_file, junit_file), strict=True):
            if path is not None:
                kind.write(result, path)
                written.append(str(path))
