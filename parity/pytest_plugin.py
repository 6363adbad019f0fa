"""The pytest plugin: a fixture and a marker that hold a model to PyTorch.

Every pytest of an environment loads it, whatever it tests: nothing of JAX, PyTorch or this project
is imported before a test asks for the fixture.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.lockstep.shared import SharedPasses
    from parity.result import Result

_KINDS = ("html", "json")
_SHARED: pytest.StashKey[SharedPasses] = pytest.StashKey()
_LONGEST = 80  # characters of a test's name in that of its report


class Parity:
    """What a test gets as `parity`: `parity.run`, whose verdict is asserted.

    Args:
        options: of the test's marker, for all its calls.
        node: the test's id, which reports are named after.
        places: directories for reports by their kind, `html` and `json`.
        shared: the session's reference passes.

    Attributes:
        results: of the calls so far.
    """

    def __init__(
        self, options: dict[str, Any], node: str, places: dict[str, Path], shared: SharedPasses
    ) -> None:
        self._options, self._node, self._places = options, node, places
        self._shared = shared
        self.results: list[Result] = []

    def __call__(self, *checkpoint: Any, **options: Any) -> Result:
        """Judge a model, write the reports that were asked for, and fail on another verdict.

        Args:
            checkpoint: as of `parity.run`; the marker's, or `tiny`, if none.
            options: of `parity.run`, and `expect`, the verdict to assert: `equal` if not given, as
                `divergent` of a negative control, None for none. They go before the marker's.

        Returns:
            The result, whatever the verdict where none is expected.

        Raises:
            AssertionError: another verdict: a few lines, with the report's path.
            JaxLlamaError: the checkpoint or an option is bad.
            TypeError: no option of `parity.run`.
        """
        __tracebackhide__ = True
        given = {"expect": "equal", **self._options, **options}
        if checkpoint:
            (given["checkpoint"],) = checkpoint
        expect = given.pop("expect")
        result = self._run(given)
        self.results.append(result)
        written = self._write(result)
        if expect is not None and result.verdict != expect:
            raise AssertionError("\n".join(_said(result, expect, written)))
        return result

    def _run(self, given: dict[str, Any]) -> Result:
        __tracebackhide__ = True
        from jaxllama.errors import JaxLlamaError
        from parity.runner.run import run

        known = inspect.signature(run).parameters
        if unknown := [name for name in given if name not in known]:
            raise TypeError(_no_option(unknown[0], list(known)))
        try:
            return run(**{"shared": self._shared, **given})
        except JaxLlamaError as error:  # its message says all: no frame of ours does
            raise error.with_traceback(None) from None

    def _write(self, result: Result) -> dict[str, Path]:
        from parity.report.outputs import write_report

        name = report_name(self._node, len(self.results))
        paths = {kind: place / f"{name}.{kind}" for kind, place in self._places.items()}
        if paths:
            write_report(result, **paths)
        return paths


def report_name(node: str, call: int) -> str:
    """Return how a test's report is named: no two tests share a name, in one process or several.

    Args:
        node: the test's id.
        call: which of its calls, from 1.
    """
    words = re.sub(r"[^\w.]+", "-", node).strip("-.")[-_LONGEST:]
    again = f"-{call}" if call > 1 else ""
    return f"{words}-{hashlib.sha256(node.encode()).hexdigest()[:8]}{again}"


def _said(result: Result, expect: str, written: dict[str, Path]) -> list[str]:
    from parity.report.wording import brief

    wanted = [] if expect == "equal" else [f"expected the verdict {expect}"]
    reports = [f"report: {path}" for path in written.values()]
    return [*brief(result), *wanted, *(reports or ["report: none; --parity-html DIR writes one"])]


def _no_option(name: str, known: list[str]) -> str:
    from jaxllama.errors import meant

    guess = meant(name, known)
    return f"parity: no option {name!r} of parity.run; {guess or 'it has ' + ', '.join(known)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add where reports go."""
    group = parser.getgroup("parity", "models held to PyTorch")
    for kind in _KINDS:
        group.addoption(
            f"--parity-{kind}",
            metavar="DIR",
            help=f"Write a report of every call of the fixture `parity` here, as {kind.upper()}.",
        )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and make the directories of reports."""
    config.addinivalue_line(
        "markers",
        "parity(checkpoint, expect='equal', **options): options of parity.run for the calls of the "
        "fixture `parity` in this test",
    )
    for option, place in _places(config).items():
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(
                f"--parity-{option} {place}: no directory can be made there: {error.strerror}"
            ) from error


def _places(config: pytest.Config) -> dict[str, Path]:
    given = {kind: config.getoption(f"parity_{kind}") for kind in _KINDS}
    here = config.invocation_params.dir
    return {kind: here / place for kind, place in given.items() if place is not None}


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Judge a model tap by tap: takes what `parity.run` takes, and asserts that it is equal.

    Of all calls of a session one reference is run, however many tests hold a model to it.
    """
    from parity.lockstep.shared import SharedPasses

    options: dict[str, Any] = {}
    for marker in reversed([*request.node.iter_markers("parity")]):  # the nearest has the last word
        options |= marker.kwargs
        if marker.args:
            (options["checkpoint"],) = marker.args
    shared = request.config.stash.setdefault(_SHARED, SharedPasses())
    return Parity(options, request.node.nodeid, _places(request.config), shared)
