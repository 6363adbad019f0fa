"""Hold compile time and memory to the ratios kept in docs/performance-guard.json; exit 1 below one.

A ratio compares this model with another, with the size of its own weights, a first start with the
second, or what attention health of 2,048 tokens takes with 3 GB; in one run on one machine, so that
a slow machine fails nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import struct_rusage

from jaxllama.checkpoint import open_checkpoint
from jaxllama.compilation_cache import NO_CACHE

KEPT = Path(__file__).parent.parent / "docs" / "performance-guard.json"
RUN = (
    "bench smollm2 --variants jaxllama,tunix --dtype f32 --prompt 128 --batch 1 --rounds 1 --quiet"
)
HEALTH = "health smollm2 --text CHANGELOG.md --length 2048 --quiet"
MOST_OF_HEALTH = 3e9
START = ["--max-tokens", "1", "--quiet"]


def used_by(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> struct_rusage:
    """Run a command and return what its process used.

    Raises:
        subprocess.CalledProcessError: it ended with another exit code than 0 or 1, a verdict's.
    """
    process = subprocess.Popen(
        command, cwd=KEPT.parents[1], env=environment, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise subprocess.CalledProcessError(process.returncode, command)
    return used


def most_memory(command: Sequence[str]) -> int:
    """Return the most bytes that a command's process holds."""
    return used_by(command).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def second_start() -> float:
    """Return how many times the seconds of a second start the first takes, to the first token.

    The processor's seconds, importing and loading among them: what else runs does not count.
    """
    checkpoint = str(open_checkpoint("smollm2", quiet=True).path)
    command = [sys.executable, "-m", "jaxllama", "generate", checkpoint, "Once", *START]
    unset = (NO_CACHE, "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    with tempfile.TemporaryDirectory() as cache:
        both = [used_by(command, kept | {"JAXLLAMA_CACHE": cache}) for _ in range(2)]
    first, second = (used.ru_utime + used.ru_stime for used in both)
    return first / second


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
    """Run the benchmark, start twice, look at attention health, and compare."""
    kept = json.loads(KEPT.read_text())
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "bench.json"
        command = [sys.executable, "-m", "jaxllama", *RUN.split(), "--json", str(made)]
        subprocess.run(command, check=True)
        ratios = json.loads(made.read_text())["ratios"]
    found = {name: ratio["median"] for name, ratio in ratios.items()}
    found["first_start_vs_second"] = second_start()
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
