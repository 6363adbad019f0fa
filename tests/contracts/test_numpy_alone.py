"""Captures and results are judged where NumPy, safetensors and the terminal's packages are alone.

The environment is made of what `pip install --no-deps` puts there: the files of the distributions
that are installed here, and no other's.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from witnesses import small

import parity
from parity.report.outputs import write_report

ROOT = Path(__file__).parents[2]
ASKED = ("numpy", "rich", "typer", "safetensors", "ml_dtypes")
HEAVY = ("flax", "jax", "jaxlib", "jaxtyping", "torch", "transformers")
# Says afterwards what was imported, whatever the exit code.
RUN = """
import atexit, json, runpy, sys
place, report, *sys.argv = sys.argv[1:]
sys.path.insert(0, place)
atexit.register(lambda: json.dump(sorted(sys.modules), open(report, "w")))
runpy.run_module("parity", run_name="__main__", alter_sys=True)
"""


def needed(names: tuple[str, ...]) -> set[str]:
    """Return distributions and what they need, extras left out."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder to import from, with those packages and this project's."""
    place = tmp_path_factory.mktemp("alone")
    for name in needed(ASKED):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (place / top).exists():
                (place / top).symlink_to(Path(str(distribution.locate_file(top))))
    for package in ("parity", "jaxllama"):
        (place / package).symlink_to(ROOT / package)
    return place


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return captures of two implementations, and a result."""
    place = tmp_path_factory.mktemp("saved")
    options = {"scenarios": "causal", "length": 6}
    parity.capture(small(), place / "jax", dtypes="f32", **options)
    parity.capture(small(), place / "torch", subject="torch", dtypes="f64,f32", **options)
    write_report(parity.compare(place / "jax", place / "torch"), json=place / "result.json")
    return place


def run(environment: Path, *words: str, status: int = 0) -> tuple[str, set[str]]:
    """Run a command there; return what it said, and what it imported."""
    report = environment.parent / "modules.json"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN, str(environment), str(report), "parity", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == status, said
    return said, set(json.loads(report.read_text()))


def judged_alone(environment: Path, *words: str) -> None:
    said, modules = run(environment, *words)
    assert said.startswith("equal: "), said
    assert not modules & {*HEAVY}


def test_captures_are_compared(environment: Path, saved: Path) -> None:
    reports = ["--json", str(saved / "again.json"), "--junit", str(saved / "again.xml")]
    judged_alone(environment, "compare", str(saved / "jax"), str(saved / "torch"), *reports)
    assert json.loads((saved / "again.json").read_text())["verdict"] == "equal"


def test_results_are_judged_again(environment: Path, saved: Path) -> None:
    judged_alone(environment, "recheck", str(saved / "result.json"))


def test_a_divergence_is_one_there_too(environment: Path, saved: Path) -> None:
    content = json.loads((saved / "result.json").read_text())
    for row in content["taps"]:
        if row["tap"] == "logits":
            row["rho"] = 1e6
    wrong = saved / "wrong.json"
    wrong.write_text(json.dumps(content))
    said, _ = run(environment, "recheck", str(wrong), status=1)
    assert said.startswith("divergent: ")


def test_python_does_without_the_rest_too(environment: Path, saved: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import parity\n"
        "assert parity.compare(sys.argv[2], sys.argv[3]).verdict == 'equal'\n"
        "assert parity.recheck(sys.argv[4]).verdict == 'equal'\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    paths = [str(saved / name) for name in ("jax", "torch", "result.json")]
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(environment), *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


def test_what_a_page_needs_is_said(environment: Path, saved: Path) -> None:
    page = ["--html", str(saved / "page.html")]
    said, _ = run(environment, "recheck", str(saved / "result.json"), *page, status=2)
    assert said.startswith("parity: --html needs the package jinja2, which is not installed: pip ")
    assert not (saved / "page.html").exists()


def test_the_environment_has_no_more_than_it_should(environment: Path) -> None:
    """What runs a model is refused there, by the package that is missing."""
    said, _ = run(environment, "run", "tiny", status=2)
    assert "which is not installed: pip install" in said
