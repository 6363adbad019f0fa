"""What is said of an error, and which exit code it gives."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.command_line.failure import report_error
from jaxllama.errors import InputError, ReportError, join_problems

ROOT = Path(__file__).parents[3]
PETABYTES = (10**8, 10**8)


def said_of(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = report_error(error, "parity")
    return code, capsys.readouterr().err


def raised_by(call) -> BaseException:
    with pytest.raises(BaseException) as found:  # noqa: PT011 (whatever it is)
        call()
    return found.value


def torch_zeros() -> None:
    import torch

    torch.zeros(PETABYTES)


@pytest.mark.parametrize(
    "call",
    [
        lambda: np.zeros(PETABYTES),
        lambda: jnp.zeros(PETABYTES),
        jax.jit(lambda: jnp.zeros(PETABYTES)),
        torch_zeros,
        lambda: bytearray(2**62),
    ],
    ids=["numpy", "jax", "jit", "torch", "python"],
)
def test_memory_that_runs_out_is_said_to(call, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = said_of(raised_by(call), capsys)
    assert code == 4
    assert said.startswith("parity: out of memory: ") and said.count("\n") == 1


def test_another_error_of_theirs_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = said_of(raised_by(lambda: jnp.zeros(3) + jnp.zeros(4)), capsys)
    assert code == 4 and said.startswith("parity: internal error: TypeError: ")
    assert "out of memory" not in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a\n  - b"), 2, "parity: a\n  - b\n"),
        (ReportError("a"), 5, "parity: a\n"),
        (KeyError(), 4, "parity: internal error: KeyError (place unknown); "),
        (AssertionError("a\n\n b"), 4, "parity: internal error: AssertionError: a b ("),
        (OSError(5, "Input/output error", "x"), 4, "parity: the system refused: [Errno 5]"),
        (OSError(12, "Cannot allocate memory"), 4, "parity: out of memory: [Errno 12]"),
        (
            ModuleNotFoundError("No module named 'no_such'", name="no_such"),
            2,
            "parity: needs the package no_such, which is not installed: pip install no_such\n",
        ),
        (ImportError("libx.so: cannot open", name="numpy"), 2, "parity: numpy does not load here"),
        (
            ModuleNotFoundError("No module named 'parity.x'", name="parity.x"),
            4,
            "parity: internal error: ModuleNotFoundError: No module named 'parity.x'",
        ),
        (ValueError("x" * 2000), 4, f"parity: internal error: ValueError: {'x' * 400}... ("),
    ],
)
def test_what_each_kind_gives(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, line = said_of(error, capsys)
    assert found == code and line.startswith(said), line


def normal(requirement: str) -> str:
    """Return a requirement's name as indices compare them."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_missing_is_asked_for_as_pyproject_has_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every package that our sources import, and every one that an extra for users brings."""
    monkeypatch.setattr("jaxllama.command_line.failure._is_there", lambda _: False)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {normal(one) for one in project["dependencies"]}
    extras = {
        extra: {normal(one) for one in wanted}
        for extra, wanted in project["optional-dependencies"].items()
        if extra not in ("docs", "dev")  # of who works on this project
    }
    published = metadata.packages_distributions()
    asked_for = set()
    for package in sorted(imported()):
        asked = {normal(one) for one in published.get(package, [package])}
        error = ModuleNotFoundError(f"No module named '{package}'", name=package)
        code, said = said_of(error, capsys)
        remedy = said.removesuffix("\n").rpartition("pip install ")[2]
        extra = re.fullmatch(r"'jaxllama\[(.+)\]'", remedy)
        brings = any(asked & wanted for wanted in extras.values())
        assert code == 2 and bool(extra) == (brings and not asked & core), said
        if brings or asked & core:  # others' Llamas say themselves what they need
            assert asked & extras[extra[1]] if extra else normal(remedy) in asked, said
        asked_for |= asked
    assert set().union(core, *extras.values()) <= asked_for


def imported() -> set[str]:
    """Return the packages of others that ours import, anywhere in a file."""
    found = set()
    for path in (p for package in ("jaxllama", "parity") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found - {"jaxllama", "parity"} - sys.stdlib_module_names


def test_a_message_that_cannot_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    code, said = said_of(Broken(), capsys)
    assert code == 4 and "Broken: (its message cannot be shown)" in said


def test_the_place_is_our_own_where_it_passed_through(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(str):
        def __format__(self, _: str) -> str:
            raise KeyError

    error = raised_by(lambda: join_problems("a", [Broken()]))
    assert "(jaxllama/errors.py:" in said_of(error, capsys)[1]
    assert "(test_failure.py:" in said_of(raised_by(lambda: [][0]), capsys)[1]
