"""Measure a conversion of Llama-3.1-8B's exact shapes: speed against copying, and peak memory.

Writes a synthetic checkpoint (bfloat16, 16 GB), copies it, converts it in a process of its own,
verifies nothing but sizes (use `jaxllama verify` for that), and removes everything again.

    python scripts/bench_convert.py WORK_DIRECTORY [--preset llama-3.1-8b] [--to meta] [--keep]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from jaxllama.checkpoint import Checkpoint, TensorInfo, convert
from jaxllama.checkpoint.dtypes import BFLOAT16
from jaxllama.checkpoint.names import expected_tensors
from jaxllama.presets import preset

_CHILD = """
import resource, sys
from jaxllama.cli import main
try:
    main(["convert", *sys.argv[1:]])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def synthetic(name: str, layers: int | None = None) -> Checkpoint:
    """Return a checkpoint of random weights below 1, made tensor by tensor when read.

    Args:
        name: of a preset.
        layers: how many layers, if not all.
    """
    config = preset(name)
    if layers is not None:
        config = config.replace(num_hidden_layers=layers)
    bits = np.random.default_rng(0).integers(0, 1 << 16, 1 << 24, np.uint16)
    bits &= 0xBF7F  # without the exponent's highest bit nothing is NaN, infinite or above 1
    shapes = dict(expected_tensors(config))
    order = {tensor: i for i, tensor in enumerate(shapes)}

    def read(tensor: str) -> np.ndarray:
        shape = shapes[tensor]
        return np.resize(np.roll(bits, -977 * order[tensor]), shape).view(BFLOAT16)

    return Checkpoint(
        path=None,
        format="memory",
        config=config,
        hf_config=config.to_hf(),
        tensors={tensor: TensorInfo(shape, BFLOAT16, None) for tensor, shape in shapes.items()},
        reader=read,
        config_source="its preset",
    )


def forget_cached_files() -> None:
    """Empty the page cache where that is permitted, so that copying and converting both read."""
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def main() -> None:
    """Run the measurement and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="llama-3.1-8b")
    parser.add_argument("--to", default="meta")
    parser.add_argument("--keep", action="store_true", help="keep source and target")
    arguments = parser.parse_args()
    source, copy, target = (arguments.work / n for n in ("source", "copy", "target"))
    try:
        if not source.exists():
            convert(synthetic(arguments.preset), source, to="hf")
        nbytes = sum(file.stat().st_size for file in source.iterdir())
        forget_cached_files()
        started = time.monotonic()
        subprocess.run(["cp", "-r", source, copy], check=True)
        os.sync()  # a conversion ends when its files are on the disk; so does this copy
        copying = time.monotonic() - started
        shutil.rmtree(copy)
        forget_cached_files()
        command = [sys.executable, "-c", _CHILD, str(source), str(target), "--to", arguments.to]
        started = time.monotonic()
        run = subprocess.run([*command, "--quiet"], capture_output=True, text=True)
        converting = time.monotonic() - started
        print(run.stdout, run.stderr, sep="")
        peak = int(run.stdout.split("peak ")[1])
        print(
            f"{nbytes / 1e9:.2f} GB to {arguments.to}: {converting:.1f} s, peak {peak / 1e9:.2f} GB"
        )
        print(f"copied in {copying:.1f} s: {copying / converting:.2f}x the speed of copying")
    finally:
        for directory in (copy,) if arguments.keep else (source, copy, target):
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
