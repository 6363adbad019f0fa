"""Time how long a checkpoint of each format takes to open and read whole, side by side.

    python scripts/bench_reading.py WORK_DIRECTORY [CHECKPOINT]

Every round opens and reads every format once, so that what else the machine does strikes all alike;
medians are printed, and the speed against Hugging Face's format (safetensors).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import jaxllama
from jaxllama.checkpoint import FORMATS


def main() -> None:
    """Convert a checkpoint to every format where that is not done yet, and time reading them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="directory to convert into, and to find again")
    parser.add_argument("checkpoint", nargs="?", default="smollm2")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for form in FORMATS:
        if not (options.work / form).exists():
            jaxllama.convert(options.checkpoint, options.work / form, to=form)
    seconds: dict[str, list[float]] = {form: [] for form in FORMATS}
    for _ in range(options.rounds):
        for form in FORMATS:
            started = time.perf_counter()
            checkpoint = jaxllama.open_checkpoint(options.work / form)
            for name in checkpoint.tensors:
                checkpoint.read(name)
            seconds[form].append(time.perf_counter() - started)
    plain = statistics.median(seconds["hf"])
    for form, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{form:6} {middle:6.2f} s  {plain / middle:5.2f}x  (best {min(taken):.2f} s)")


if __name__ == "__main__":
    main()
