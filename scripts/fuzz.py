"""Spoil files of every kind a checkpoint, an adapter or a record of parity has, and read them.

    make fuzz          # all of it: some 2,800 tries, one to three minutes on two cores
    python scripts/fuzz.py --seed 3 --family traces --times 2

A table says how the tries of each kind ended. What must not be - an exception of another's, a hang,
an ended process, more than 1 GB, wrong values without a word, a page of errors, a file written - is
listed below it, each with the number that repeats it, and gives exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from fuzz_families import FAMILIES
from fuzzing import fuzz


def main() -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="all if none")
    parser.add_argument("--times", type=float, default=1.0, help="of the usual number of tries")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    arguments = parser.parse_args()
    names = arguments.family or FAMILIES
    tries = {name: max(1, round(FAMILIES[name].tries * arguments.times)) for name in names}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jaxllama-fuzz-") as work:
        found = fuzz(tries, Path(work), seed=arguments.seed, workers=arguments.workers)
    print(found.table())
    print(f"{sum(tries.values())} tries in {time.monotonic() - began:.0f} seconds")
    for line in found.wrong:
        print(line, file=sys.stderr)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
