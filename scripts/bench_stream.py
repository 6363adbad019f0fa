"""Measure `parity run --stream` on a synthetic checkpoint: time and peak memory.

Writes a checkpoint of a preset's exact shapes (bfloat16; 16 GB for llama-3.1-8b), or of its first
layers, runs parity on it in a process of its own, and removes it again. Arguments after `--` go to
`parity run`.

    python scripts/bench_stream.py WORK_DIRECTORY -- --scenario packed --length 7
    python scripts/bench_stream.py WORK_DIRECTORY --preset llama-3.1-405b --layers 1 -- --length 7
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench_convert import synthetic

from jaxllama.checkpoint import convert

_CHILD = "from parity.cli import main; main()"


def main() -> int:
    """Run the measurement and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="llama-3.1-8b")
    parser.add_argument("--layers", type=int, help="as many of its layers; all if not given")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint")
    given = [*sys.argv[1:], "--"]
    stop = given.index("--")
    arguments, options = parser.parse_args(given[:stop]), given[stop + 1 : -1]
    arguments.work.mkdir(parents=True, exist_ok=True)
    layers = "" if arguments.layers is None else f"-{arguments.layers}"
    checkpoint = arguments.work / f"{arguments.preset}{layers}"
    report = arguments.work / "stream.json"
    try:
        if not checkpoint.exists():
            convert(synthetic(arguments.preset, arguments.layers), checkpoint, to="hf")
        nbytes = sum(file.stat().st_size for file in checkpoint.iterdir())
        command = ["run", str(checkpoint), "--stream", "--json", str(report), *options]
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-c", _CHILD, *command]).returncode
        seconds = time.monotonic() - started
        if report.exists():
            peak = json.loads(report.read_text())["timing"]["peak_memory_gb"]
            print(f"{nbytes / 1e9:.2f} GB: {seconds:.0f} s, peak {peak:.2f} GB, exit code {code}")
        return code
    finally:
        report.unlink(missing_ok=True)
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
