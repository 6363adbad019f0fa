"""Where a result goes: files refused before the work, and written after the verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from jaxllama.command_line import streams
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.failure import type_and_message
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.errors import InputError, ReportError, argument, join_problems
from jaxllama.files.output import check_outputs
from parity.report import terminal
from parity.result import Result


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
    check_reports(json, html, junit)
    _write(result, _places(json, html, junit))


def check_reports(
    json: str | Path | None,
    html: str | Path | None,
    junit: str | Path | None,
    inputs: Sequence[str | Path] = (),
) -> None:
    """Refuse reports before minutes of work are spent on what they are of.

    Args:
        json: see `write_report`; `html` and `junit` likewise.
        html: see `json`.
        junit: see `json`.
        inputs: files and directories that are read.

    Raises:
        InputError: see `jaxllama.files.output.check_outputs`; or a page needs a package that
            judging does without, and that is not installed.
    """
    check_outputs(*_places(json, html, junit).values(), inputs=inputs)
    if html is None:
        return
    try:
        import_module("parity.report.html_file")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{argument('html')} needs the package {error.name}, which is not installed: "
            "pip install 'jaxllama[parity]'"
        ) from error


def publish(
    result: Result,
    *,
    json: Path | None = None,
    html: Path | None = None,
    junit: Path | None = None,
    quiet: bool = False,
) -> None:
    """Print a result, and only then write it to files: a full disk must not swallow a verdict.

    Raises:
        ReportError: a file cannot be written; the others are.
    """
    terminal.show(result, SafeConsole(), quiet=quiet)
    with after_verdict():
        _write(result, _places(json, html, junit))


@contextmanager
def after_verdict() -> Iterator[None]:
    """Write reports in here, once the verdict has been printed.

    Raises:
        ReportError: whatever kept one from being written, a fault of our own included.
    """
    streams.flush(sys.stdout)
    try:
        yield
    except Exception as error:
        said = (
            str(error)
            if isinstance(error, InputError)
            else f"a report failed: {type_and_message(error)}"
        )
        raise ReportError(f"the verdict printed above stands, but {said}") from error


def _places(
    json: str | Path | None, html: str | Path | None, junit: str | Path | None
) -> dict[str, Path | None]:
    given = {"json": json, "html": html, "junit": junit}
    return {kind: None if path is None else Path(path) for kind, path in given.items()}


def _write(result: Result, places: Mapping[str, Path | None]) -> None:
    """Write what can be written; then raise what kept the rest from it."""
    written: list[str] = []
    failed: list[Exception] = []
    with on_interrupt(lambda: f"{', '.join(written) or 'nothing'} was written"):
        for kind, path in places.items():
            if path is None:
                continue
            try:
                import_module(f"parity.report.{kind}_file").write(result, path)
                written.append(str(path))
            except Exception as error:
                failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        said = [str(e) if isinstance(e, InputError) else type_and_message(e) for e in failed]
        raise InputError(join_problems("reports", said)) from failed[0]
