"""`parity selftest`: inject, judge, count."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from jaxllama import compilation_cache
from parity.options import Progress
from parity.runner import environment
from parity.selftest.clean_runs import CleanTask, calibration_runs, clean_runs
from parity.selftest.fault import Fault
from parity.selftest.faults import catalogue
from parity.selftest.harness import Outcome, harnesses
from parity.selftest.results import CleanResult, Injection, SelftestResult, injection

Task = Fault | CleanTask
Row = Injection | CleanResult
Rows = Generator[tuple[int, Row], None, None]
# What a process is given at a time: enough to use its references and compiled operations again.
BATCH = 24


@dataclass(frozen=True)
class SelftestPlan:
    """What to run; plain data, so that every process can work it out for itself.

    Attributes:
        quick: one injection of each family and a few clean runs, for continuous integration.
        families: only these, as `R3`; no clean runs then. Empty for all.
        seeds: of fresh models; clean runs over these alone then, and no injections.
    """

    quick: bool = False
    families: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def tasks(self) -> list[Task]:
        """Return injections and clean runs, those of one harness together."""
        if self.seeds:
            return list(calibration_runs(self.seeds))
        clean = [] if self.families else list(clean_runs(quick=self.quick))
        tasks: list[Task] = [*self.faults(), *clean]
        return sorted(tasks, key=lambda task: (task.model, task.lane, task.mode))

    def faults(self) -> list[Fault]:
        """Return the faults to inject."""
        faults = [f for f in catalogue() if not self.families or f.family in self.families]
        if self.quick:
            faults = list({fault.family: fault for fault in reversed(faults)}.values())
        return faults


def selftest(
    plan: SelftestPlan, *, jobs: int = 1, progress: Progress = lambda what, done, total: None
) -> SelftestResult:
    """Inject every fault and run every clean twin.

    Args:
        plan: which.
        jobs: processes to use.
        progress: called with what is under way, how much is done and how much there is.

    Returns:
        The matrix; a run that raises is a miss or a false alarm with the exception's text.
    """
    began = time.perf_counter()
    tasks = plan.tasks()
    rows: dict[int, Row] = {}
    with closing((_alone if jobs == 1 else partial(_together, jobs))(plan, tasks)) as found:
        for index, row in found:
            rows[index] = row
            progress(tasks[index].kind, len(rows), len(tasks))
    with _one_thread():
        facts = environment.describe()
    matrix = SelftestResult(seconds=time.perf_counter() - began, environment=facts)
    for _, row in sorted(rows.items()):
        if isinstance(row, Injection):
            matrix.injections.append(row)
        else:
            matrix.clean.append(row)
    return matrix


def _alone(plan: SelftestPlan, tasks: Sequence[Task]) -> Rows:
    for index, task in enumerate(tasks):
        yield index, perform(task)


def _together(jobs: int, plan: SelftestPlan, tasks: Sequence[Task]) -> Rows:
    """Share the tasks out in batches; a batch whose process dies is one of failures."""
    batches = [range(i, min(i + BATCH, len(tasks))) for i in range(0, len(tasks), BATCH)]
    # A fork of a process in which JAX runs threads may hang.
    context = multiprocessing.get_context("spawn")
    others = {process.pid for process in multiprocessing.active_children()}  # the caller's own
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(compilation_cache.is_on(),)
    )
    try:
        futures: dict[Future[list[Row]], range] = {
            pool.submit(_work, plan, batch): batch for batch in batches
        }
        for future in as_completed(futures):
            batch, error = futures[future], future.exception()
            if error is None:
                yield from zip(batch, future.result(), strict=True)
            else:
                said = f"{type(error).__name__}: {error}"
                yield from ((index, _row(tasks[index], None, said)) for index in batch)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process.pid not in others:
                process.terminate()
        raise
    pool.shutdown()


def _begin(cached: bool) -> None:
    # A terminal interrupts all processes; the first of them ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if cached:
        compilation_cache.turn_on()


def _work(plan: SelftestPlan, batch: range) -> list[Row]:
    tasks = plan.tasks()
    return [perform(tasks[index]) for index in batch]


def perform(task: Task) -> Row:
    """Do one injection or clean run; a crash is written down, it must not end the selftest."""
    with _one_thread():
        try:
            judged = _explained(task) if isinstance(task, Fault) else task.check(harnesses())
            return _row(task, judged, "")
        except Exception as error:
            return _row(task, None, f"{type(error).__name__}: {error}"[:500])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give PyTorch one thread: on matrices this small, several wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _explained(fault: Fault) -> Outcome:
    """Judge a fault, then ask for its cause; failing to explain is no failure to detect."""
    harness = harnesses().of(fault)
    judged = harness.check_fault(fault)
    if judged.verdict != "divergent" or judged.first is None:
        return judged
    try:
        return replace(judged, cause=harness.cause(fault, judged.first))
    except Exception as error:
        return replace(judged, unexplained=f"{type(error).__name__}: {error}")


def _row(task: Task, judged: Outcome | None, error: str) -> Row:
    if isinstance(task, Fault):
        return injection(task, judged, error)
    return CleanResult(
        task.kind,
        task.model,
        task.scenario,
        task.lane,
        task.mode,
        verdict=judged.verdict if judged else "error",
        found=judged.first.row.tap if judged and judged.first else "",
        error=error,
        figures=judged.figures if judged else (),
        fair=task.fair,
    )
