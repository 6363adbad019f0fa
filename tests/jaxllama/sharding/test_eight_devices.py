"""The tests of `tests/meshes`, in a process whose CPU stands for eight devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FLAGS = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
FOLDER = "tests/meshes"


def pytest_on(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_on_eight_devices() -> None:
    done = pytest_on(os.environ | FLAGS)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout[-500:]


def test_without_eight_devices_nothing_of_them_is_collected() -> None:
    assert list((ROOT / FOLDER).glob("test_*.py"))
    done = pytest_on({k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"})
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout[-2000:]
