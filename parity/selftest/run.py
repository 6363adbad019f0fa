"""`parity selftest`: inject, judge, count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from parity.selftest.bench import Judgement, benches
from parity.selftest.clean import clean_runs
from parity.selftest.fault import Fault
from parity.selftest.faults import catalogue
from parity.selftest.matrix import CleanRun, Matrix, injection

Progress = Callable[[str, int, int], None]


def selftest(
    *,
    quick: bool = False,
    families: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> Matrix:
    """Inject every fault and run every clean twin.

    Args:
        quick: one injection of each family and a few clean runs, for continuous integration.
        families: only these, as `R3`; no clean runs then. Empty for all.
        progress: called with what is under way, how much is done and how much there is.

    Returns:
        The matrix; a run that raises is a miss or a false alarm with the exception's text.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on matrices this small, threads wait for each other
    try:
        return _selftest(quick, families, progress)
    finally:
        torch.set_num_threads(threads)


def _selftest(quick: bool, families: Sequence[str], progress: Progress) -> Matrix:
    began = time.perf_counter()
    faults = chosen(quick=quick, families=families)
    clean = [] if families else list(clean_runs(quick=quick))
    total, matrix = len(faults) + len(clean), Matrix()
    for done, fault in enumerate(faults):
        progress(fault.id, done, total)
        judged, error = _attempt(partial(benches().of(fault).inject, fault))
        matrix.injections.append(injection(fault, judged, error))
    for done, run in enumerate(clean, start=len(faults)):
        progress(f"clean: {run.kind}", done, total)
        judged, error = _attempt(partial(run.judge, benches()))
        matrix.clean.append(
            CleanRun(
                run.kind,
                run.model,
                run.scenario,
                run.lane,
                run.mode,
                verdict=judged.verdict if judged else "error",
                found=judged.first.row.tap if judged and judged.first else "",
                error=error,
            )
        )
    matrix.seconds = time.perf_counter() - began
    return matrix


def chosen(*, quick: bool, families: Sequence[str]) -> list[Fault]:
    """Return the faults to inject, those of one bench together."""
    faults = [fault for fault in catalogue() if not families or fault.family in families]
    if quick:
        faults = list({fault.family: fault for fault in reversed(faults)}.values())
    return sorted(faults, key=lambda fault: (fault.model, fault.lane, fault.decodes))


def _attempt(work: Callable[[], Judgement]) -> tuple[Judgement | None, str]:
    """Return what `work` found, or how it failed: one crash must not end the selftest."""
    try:
        return work(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:500]
