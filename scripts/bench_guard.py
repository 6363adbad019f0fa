"""Hold compile time and memory to the ratios kept in docs/performance-guard.json; exit 1 below one.

A ratio compares this model with another, with the size of its own weights, or a first start with
the second, in one run on one machine, so that a slow machine fails nothing.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaxllama.checkpoint import open_checkpoint
from jaxllama.compilation_cache import NO_CACHE

KEPT = Path(__file__).parent.parent / "docs" / "performance-guard.json"
RUN = (
    "bench smollm2 --variants jaxllama,tunix --dtype f32 --prompt 128 --batch 1 --rounds 1 --quiet"
)

START = ["--max-tokens", "1", "--quiet"]


def second_start() -> float:
    """Return how many times the seconds of a second start the first takes, to the first token.

    The processor's seconds, importing and loading among them: what else runs does not count.
    """
    checkpoint = str(open_checkpoint("smollm2", quiet=True).path)
    command = [sys.executable, "-m", "jaxllama", "generate", checkpoint, "Once", *START]
    unset = (NO_CACHE, "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    taken = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            environment = kept | {"JAXLLAMA_CACHE": cache}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    first, second = taken
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
    """Run the benchmark, start twice, and compare."""
    kept = json.loads(KEPT.read_text())
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "bench.json"
        command = [sys.executable, "-m", "jaxllama", *RUN.split(), "--json", str(made)]
        subprocess.run(command, check=True)
        ratios = json.loads(made.read_text())["ratios"]
    found = {name: ratio["median"] for name, ratio in ratios.items()}
    found["first_start_vs_second"] = second_start()
    problems = fallen(found, kept)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if not problems:
        print(", ".join(f"{name} {found[name]:.2f}" for name in kept))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
