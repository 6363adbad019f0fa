"""The package on each Python and with the oldest and newest dependencies; needs ci/tools.txt.

`nox -s package` runs all that this machine has a Python for and says which it lacks;
`nox -s "package(edge='oldest', interpreter='3.11')"` one. `-- --extras ""` leaves PyTorch out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import nox

PYTHONS = ("3.11", "3.12", "3.13")
EDGES = ("oldest", "newest")
nox.options.sessions = ("package",)


@nox.session(venv_backend="none")
@nox.parametrize("interpreter", PYTHONS)
@nox.parametrize("edge", EDGES)
def package(session: nox.Session, edge: str, interpreter: str) -> None:
    """Build, install with one edge of the dependencies, run README's examples, list what is in."""
    python = f"python{interpreter}"
    # Found is not enough: a version manager's own python3.12 may only say how to install one.
    if shutil.which(python) is None or subprocess.run([python, "-c", ""], check=False).returncode:
        session.skip(f"no {python} here")
    session.run(
        sys.executable,
        "scripts/check_package.py",
        f"--python={python}",
        f"--constraints=ci/{edge}.txt",
        f"--sbom=build/sbom/{interpreter}",
        *session.posargs,
    )


@nox.session(python=PYTHONS)
@nox.parametrize("edge", EDGES)
def tests(session: nox.Session, edge: str) -> None:
    """Run the tests; pass on what pytest is to be told, such as a folder."""
    session.install("--constraint", f"ci/{edge}.txt", "--editable", ".[parity,quality,train,dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check style, formatting, imports and types, with the versions of constraints.txt."""
    session.install("--constraint", "constraints.txt", "--editable", ".[parity,quality,train,dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")
    session.run("mypy")
