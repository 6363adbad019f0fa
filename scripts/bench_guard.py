"""Hold compile time and memory to the ratios kept in docs/performance-guard.json; exit 1 below one.

A ratio compares this model with another, with the size of its own weights, or what attention health
of 2,048 tokens takes with 3 GB; in one run on one machine, so that a slow machine fails nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

KEPT = Path(__file__).parent.parent / "docs" / "performance-guard.json"
RUN = (
    "bench smollm2 --variants jaxllama,tunix --dtype f32 --prompt 128 --batch 1 --rounds 1 --quiet"
)
HEALTH = "health smollm2 --text CHANGELOG.md --length 2048 --quiet"
MOST_OF_HEALTH = 3e9


def most_memory(command: Sequence[str]) -> int:
    """Run a command and return the most bytes that its process held.

    Raises:
        subprocess.CalledProcessError: it ended with another exit code than 0 or 1, a verdict's.
    """
    process = subprocess.Popen(command, cwd=KEPT.parents[1])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fallen(found: Mapping[str, float], kept: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return what is to be said of ratios that are missing, or less than the least allowed."""
    said = [f"{name}: not measured" for name in kept if name not in found]
    return said + [
        f"{name}: {found[name]:.2f}, at least {limits['least']:.2f} expected, "
        f"{limits['measured']:.2f} when it was kept"
        for name, limits in kept.items()
        if name in found and not found[name] >= limits["least"]
    ]


def main() -> int:
    """Run the benchmark and attention health, and compare."""
    kept = json.loads(KEPT.read_text())
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "bench.json"
        command = [sys.executable, "-m", "jaxllama", *RUN.split(), "--json", str(made)]
        subprocess.run(command, check=True)
        ratios = json.loads(made.read_text())["ratios"]
    found = {name: ratio["median"] for name, ratio in ratios.items()}
    most = most_memory([sys.executable, "-m", "parity", *HEALTH.split()])
    found["health_2048_memory_vs_3_gb"] = MOST_OF_HEALTH / most
    problems = fallen(found, kept)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if not problems:
        print(", ".join(f"{name} {found[name]:.2f}" for name in kept))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
