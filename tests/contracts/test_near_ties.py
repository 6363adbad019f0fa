"""What passes by a near-tie does not pass in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize(("name", "told"), [("near_tie", True), ("other", False)])
def test_the_end_of_a_run_tells_of_them(tmp_path: Path, name: str, told: bool) -> None:
    test = f"def test_it(record_property):\n    record_property({name!r}, 'by a hair')\n"
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {SUPPORT}\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "near_ties", "-p", "no:jaxtyping", "test_it.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("passed by a near-tie" in ran.stdout) == told
    assert ("test_it.py::test_it: by a hair" in ran.stdout) == told
