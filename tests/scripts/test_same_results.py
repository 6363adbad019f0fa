"""Two results are the same but for versions and times, and one changed figure is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "same_results.py"
RESULT = {"verdict": "equal", "taps": [{"tap": "a", "rho": 0.5}], "timing": {"total_s": 1.0}}


def same(tmp_path: Path, after: object) -> tuple[int, str]:
    files = tmp_path / "before.json", tmp_path / "after.json"
    for file, document in zip(files, (RESULT, after), strict=True):
        file.write_text(json.dumps(document))
    done = subprocess.run([sys.executable, SCRIPT, *files], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_times_do_not_count(tmp_path: Path) -> None:
    assert same(tmp_path, RESULT | {"timing": {"total_s": 9.0}}) == (0, "the same\n")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (RESULT | {"taps": [{"tap": "a", "rho": 0.6}]}, "taps[0].rho: 0.5 -> 0.6"),
        (RESULT | {"taps": []}, "taps: [{'tap': 'a', 'rho': 0.5}] -> []"),
        ({"verdict": "equal"}, "taps: only before"),
    ],
)
def test_a_difference_is_named(tmp_path: Path, after: object, said: str) -> None:
    assert same(tmp_path, after) == (1, f"{said}\n1 differences\n")


def test_no_such_file() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "x", "y"], capture_output=True, text=True)
    assert done.returncode == 2 and "same_results:" in done.stderr
