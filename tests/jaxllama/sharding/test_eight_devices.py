"""The tests of `tests/meshes`, in processes whose CPU stands for eight devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Two thirds of the time is LLVM's, making small programs fast: nothing is gained by that here.
FLAGS = {
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
FILES = sorted(path.name for path in (ROOT / "tests/meshes").glob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_on_eight_devices(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/meshes/{name}"],
        cwd=ROOT,
        env=os.environ | FLAGS,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout[-500:]


def test_without_eight_devices_nothing_of_them_is_collected() -> None:
    assert FILES
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/meshes"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout[-2000:]
