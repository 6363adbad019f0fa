"""Rounds in turn: every variant in a process of its own, one of them working at a time.

Each round of a measure runs all variants once, in an order that turns from round to round, so that
what else the machine does strikes all alike; a ratio is taken round by round. One dtype comes after
the other, for the memory's sake; ours in the first is timed along with the second.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllama.bench import machine
from jaxllama.bench.floors import floor_work
from jaxllama.bench.measures import Measure
from jaxllama.bench.process import PeerLostError, PeerProcess, scratch_directory
from jaxllama.bench.request import BenchRequest
from jaxllama.bench.result import BenchResult, Timing, VariantResult
from jaxllama.bench.variants import FLOOR, OURS, VARIANTS
from jaxllama.dtypes import parse

if TYPE_CHECKING:
    from jaxllama.checkpoint import Checkpoint

# Rounds of a measure end early once they have taken so long, but for the least.
MEASURE_SECONDS = 20.0
Say = Callable[[str], None]


def bench(request: BenchRequest, opened: Checkpoint, say: Say = lambda _: None) -> BenchResult:
    """Measure what is asked for.

    A variant that is not installed, fails, or answers no more is left out from there on, and said
    to be.

    Args:
        request: checked.
        opened: its checkpoint.
        say: told what is done now, in a line.
    """
    weights = sum(info.nbytes // info.dtype.itemsize for info in opened.tensors.values())
    result = BenchResult(
        command=request.command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine.describe(request.threads),
        checkpoint={
            "label": request.checkpoint,
            "format": opened.format,
            "parameters": weights,
            "bytes": {dtype: weights * parse(dtype).itemsize for dtype in request.dtypes},
        },
        rounds=request.rounds,
        measures=list(request.measures),
        work={m.name: floor_work(opened.config, m) for m in request.measures},
        variants=[
            VariantResult(name, dtype) for name in request.variants for dtype in request.dtypes
        ],
    )
    with scratch_directory() as scratch:
        session = Session(request, result, scratch, say)
        try:
            for dtype in request.dtypes:
                if session.has_time():
                    session.open_all(dtype)
                session.measure_all(dtype)
        finally:
            session.end()
    return result


class Session:
    """The processes of a run.

    Args:
        request: what is to be done.
        result: filled in.
        scratch: a directory for what libraries write.
        say: told what is done now.
    """

    def __init__(self, request: BenchRequest, result: BenchResult, scratch: Path, say: Say) -> None:
        self.request, self.result, self.scratch, self.say = request, result, scratch, say
        self.began = time.monotonic()
        self.processes: dict[tuple[str, str], PeerProcess] = {}
        self.idle = self.watched = 0.0

    def open_all(self, dtype: str) -> None:
        """Start a process for each that is installed, one after the other, and load the model.

        Those of another dtype end before, but for ours.
        """
        for key in [key for key in self.processes if key[0] != OURS]:
            self.processes.pop(key).end()
        for one in (one for one in self.result.variants if one.dtype == dtype):
            if reason := VARIANTS[one.variant].missing():
                one.status, one.reason = "not installed", reason
                continue
            process = PeerProcess(self.request.threads, self.scratch)
            self.processes[one.variant, one.dtype] = process
            found = self._ask(
                one,
                ask="open",
                module=VARIANTS[one.variant].module,
                variant=one.variant,
                checkpoint=self.request.checkpoint,
                dtype=one.dtype,
            )
            if found is not None:
                one.start_seconds = time.monotonic() - process.started
                one.imported_bytes, one.loaded_bytes = (
                    found["imported_bytes"],
                    found["loaded_bytes"],
                )
                self.say(f"{one.variant} {one.dtype}: loaded after {one.start_seconds:.1f} s")

    def measure_all(self, dtype: str) -> None:
        """Take all measures of a dtype."""
        for measure in (one for one in self.request.measures if one.dtype == dtype):
            if not self.has_time():
                why = f"no time left after {self.request.seconds:g} s (--seconds)"
                self.result.not_run[measure.name] = why
                continue
            self._measure(measure)
        self.result.seconds = time.monotonic() - self.began
        if self.watched:
            self.result.idle_share = self.idle / self.watched

    def has_time(self) -> bool:
        """Whether another measure may begin."""
        return time.monotonic() - self.began <= self.request.seconds

    def end(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.end()

    def _measure(self, measure: Measure) -> None:
        cells = [one for one in self.result.variants if one.dtype == measure.dtype]
        first = self.request.dtypes[0]
        if measure.dtype != first and (ours := self.result.of(OURS, first)) is not None:
            cells.append(ours)
        for one in cells:
            self._run(measure, one, first=True)
        started, done = time.monotonic(), 0
        while done < self.request.rounds:
            if done >= measure.least_rounds and time.monotonic() - started > MEASURE_SECONDS:
                break
            turn = done % len(cells)
            for one in cells[turn:] + cells[:turn]:
                self._run(measure, one)
            done += 1
        self.say(f"{measure.name}: {done} rounds in {time.monotonic() - started:.0f} s")

    def _run(self, measure: Measure, one: VariantResult, *, first: bool = False) -> None:
        """Have one variant do a measure's work once, unless it has been lost."""
        own = one.dtype == measure.dtype
        found = self._ask(one, ask="run", **vars(measure) | {"dtype": one.dtype})
        if found is None:
            one.timings.pop(measure.name, None)  # a ratio takes whole rounds
            return
        one.peak_bytes = max(one.peak_bytes or 0, found["peak_bytes"])
        timing = one.timings.setdefault(measure.name, Timing())
        if not first:
            timing.seconds.append(found["seconds"])
            timing.usual_seconds.append(found["whole_seconds"])
            return
        if one.variant == FLOOR or not own:
            return
        timing.tokens = found["tokens"]
        timing.first_seconds = found["whole_seconds"]
        if measure.kind == "prefill" and one.first_token_seconds is None and one.start_seconds:
            one.first_token_seconds = one.start_seconds + found["whole_seconds"]

    def _ask(self, one: VariantResult, **question: object) -> dict | None:
        """Return an answer, or None once the variant is lost; look at what the others do."""
        process = self.processes.get((one.variant, one.dtype))
        if process is None:
            return None
        others = [other for other in self.processes.values() if other is not process]
        before, started = _used(others), time.monotonic()
        try:
            found: dict = process.ask(question)
        except PeerLostError as error:
            one.status, one.reason = "failed", str(error)
            del self.processes[one.variant, one.dtype]
            process.end()
            self.say(f"{one.variant} {one.dtype}: {one.reason}")
            return None
        if question["ask"] == "run":
            self.idle += _used(others) - before
            self.watched += time.monotonic() - started
        return found


def _used(processes: list[PeerProcess]) -> float:
    return sum(process.processor_seconds() or 0.0 for process in processes)
