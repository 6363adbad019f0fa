"""Runs the families of fuzz_families.py in worker processes, and counts how each try ended.

A try that hangs, ends its process or fills the memory is counted as such, and its worker replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import select
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Seconds of a try: a template has ten, and several are rendered for one.
SECONDS = 90.0
MEMORY = 1 << 30
GOOD = ("refused", "same", "noted", "manifest", "accepted", "data")
BAD = ("uncaught", "hang", "abort", "memory", "silent", "flood", "wrote")
_PREPARING = 180.0


@dataclass
class Outcomes:
    """How often tries ended in which way, by family, and a line for each that is wrong."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, family: str, number: int, ended: str, seconds: float) -> None:
        kind = ended.partition(":")[0]
        kind = kind if kind in GOOD + BAD else "uncaught"
        self.counts.setdefault(family, Counter())[kind] += 1
        self.seconds[family] = self.seconds.get(family, 0.0) + seconds
        if kind in BAD:
            self.wrong.append(f"{family} {number}: {ended}")

    @property
    def total(self) -> Counter[str]:
        return sum(self.counts.values(), Counter())

    def table(self) -> str:
        """Return a line for each family, and their sum."""
        kinds = [*GOOD, *BAD]
        rows = {**{n: self.counts[n] for n in sorted(self.counts)}, "all": self.total}
        widths = [max(len(kind), 5) for kind in kinds]
        head = "  ".join(kind.rjust(width) for kind, width in zip(kinds, widths, strict=True))
        lines = [f"{'':16}  tries  {head}"]
        for name, row in rows.items():
            cells = (str(row[k]).rjust(w) for k, w in zip(kinds, widths, strict=True))
            lines.append(f"{name:16}  {sum(row.values()):5}  " + "  ".join(cells))
        return "\n".join(lines)


Task = tuple[str, int, int]


def fuzz(
    tries: Mapping[str, int],
    work: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    seconds: float = SECONDS,
    module: str = "fuzz_families",
) -> Outcomes:
    """Try changes of every family.

    Args:
        tries: how many, by family.
        work: an empty directory.
        seed: of all of it.
        workers: processes.
        seconds: that one try may take.
        module: whose `FAMILIES` they are.
    """
    # Families are dealt out in pieces, so that a worker prepares few of them.
    pieces: queue.SimpleQueue[list[Task]] = queue.SimpleQueue()
    size = max(20, sum(tries.values()) // (8 * workers))
    for family, count in sorted(tries.items(), key=lambda item: -item[1]):
        tasks = [(family, number, seed) for number in range(count)]
        for first in range(0, count, size):
            pieces.put(tasks[first : first + size])
    outcomes = Outcomes()
    runners = [
        threading.Thread(target=_drive, args=(pieces, work / str(i), module, seconds, outcomes))
        for i in range(workers)
    ]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    return outcomes


def _drive(
    pieces: queue.SimpleQueue[list[Task]],
    work: Path,
    module: str,
    seconds: float,
    outcomes: Outcomes,
) -> None:
    worker: _Worker | None = None
    while True:
        try:
            tasks = pieces.get_nowait()
        except queue.Empty:
            break
        for family, number, seed in tasks:
            if worker is None:
                shutil.rmtree(work, ignore_errors=True)
                worker = _Worker(work, module)
            began = time.monotonic()
            ended = worker.ask([family, number, seed], seconds)
            outcomes.add(family, number, ended, time.monotonic() - began)
            if ended.startswith(("hang", "abort")):
                worker.end()
                worker = None
    if worker is not None:
        worker.end()
    shutil.rmtree(work, ignore_errors=True)


class _Worker:
    def __init__(self, work: Path, module: str) -> None:
        work.mkdir(parents=True)
        self._log = (work / "stderr").open("w+b")
        here = str(Path(__file__).parent)
        paths = [here, str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(work), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=work,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._said = b""

    def ask(self, task: Sequence[Any], seconds: float) -> str:
        """Return how a try ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        # What is sound is written at a family's first try.
        for allowed in (_PREPARING, seconds):
            line = self._line(allowed)
            if line is None:
                return f"hang: longer than {allowed:.0f} seconds"
            if not line:
                code = self._process.wait()
                self._log.seek(0)
                said = self._log.read().decode(errors="replace").strip().splitlines()
                return f"abort: exit code {code}: {' | '.join(said[-3:])[:400]}"
        return str(json.loads(line))

    def _line(self, seconds: float) -> bytes | None:
        """Return a line, an empty one of a process that ended, None where it takes too long."""
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._said:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                return b""
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return line

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def main() -> None:
    """Answer tasks: a line once the family is prepared, and one at its end."""
    work, families = Path(sys.argv[1]), __import__(sys.argv[2]).FAMILIES
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepared: dict[str, Any] = {}
    for line in sys.stdin:
        family, number, seed = json.loads(line)
        if family not in prepared:
            folder = work / "sound" / family.replace(" ", "_")
            folder.mkdir(parents=True)
            prepared[family] = families[family].prepare(folder)
        print("prepared", file=answers, flush=True)
        with _memory_told() as told:
            ended = _ended(prepared[family], work / "try", number, f"{seed} {family} {number}")
        if told and told[0] > MEMORY and ended.partition(":")[0] in GOOD:
            ended = f"memory: {told[0] >> 20} MB"
        print(json.dumps(ended), file=answers, flush=True)


def _ended(one: Any, place: Path, number: int, seed: str) -> str:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        return str(one(place, number, random.Random(seed)))
    except BaseException as error:
        if isinstance(error, MemoryError):
            return "memory: there is none left"
        return f"uncaught: {traceback.format_exc(limit=-4)}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _memory_told() -> Iterator[list[int]]:
    """Put into a list by how many bytes the most memory in use was above what was in use before."""
    told: list[int] = []
    before = _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the most
    yield told
    told.append(_memory("VmHWM") - before)


def _memory(name: str) -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(name))
        return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    main()
