"""Which files a result is written to: all of them refused before the work, or none."""

from __future__ import annotations

from pathlib import Path

from jaxllama.errors import InputError, on_interrupt
from parity.report import json_file
from parity.result import Result


def check_outputs(*paths: Path | None) -> None:
    """Refuse report paths before minutes of work are spent on them.

    Raises:
        InputError: one cannot be written to, or two are the same file.
    """
    given = [path for path in paths if path is not None]
    for path in given:
        json_file.check_writable(path)
    places = [path.resolve() for path in given]
    if len(set(places)) < len(places):
        twice = next(path for path in given if places.count(path.resolve()) > 1)
        raise InputError(f"{twice}: two reports cannot be one file; give each its own")


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
