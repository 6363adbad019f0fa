"""The command line of the linter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from parity.commands.lint import lint_command


@pytest.fixture
def run_lint() -> Callable[..., Any]:
    """Return a function that runs `parity lint` with arguments, and `stdin` if there is any."""
    app = typer.Typer()
    app.command()(lint_command)

    def run(*arguments: Any, stdin: bytes | None = None) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)

    return run
