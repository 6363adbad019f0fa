"""Several implementations walked through one forward pass together, a stage at a time.

Only one stage's arrays are alive at once, so memory does not grow with depth: a stage is
computed by all, compared with the gold, judged and forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from parity.judge import Judge, PassRecord
from parity.parties import Entry, Party, chunk_views
from parity.scenarios import Inputs
from parity.subjects.base import CachedSubject, Run, Subject

Progress = Callable[[], None]


def walk(
    lane: str,
    inputs: Inputs,
    gold: Subject,
    entries: Sequence[Entry],
    modes: Sequence[str],
    layers: int,
    *,
    chunks: Sequence[int] | None = None,
    progress: Progress = lambda: None,
) -> PassRecord:
    """Run all parties over one scenario in step with the gold and judge the subject.

    Args:
        lane: dtype under judgement.
        inputs: the scenario.
        gold: the float64 reference.
        entries: who takes part, and how.
        modes: `free`, `isolated`; or `decode` alone, with `chunks`.
        layers: L.
        chunks: columns per call of a decode run.
        progress: called after every stage.
    """

    def start(subject: Subject) -> Run:
        if chunks is None:
            return subject.start(inputs)
        return cast(CachedSubject, subject).start_decode(inputs, chunks)

    gold_run = start(gold)
    parties = [
        Party(e.subject, e.roles, mode, gold_run if e.subject is gold else start(e.subject))
        for mode in modes
        for e in entries
        if mode in e.modes and (mode != "isolated" or e.subject.can_force)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judge = Judge(lane, inputs.name, parties, pool)
        for chunk in chunk_views(inputs, chunks):
            for _ in range(layers + 2):
                truth = gold_run.step()
                judge.stage(chunk, truth, gold_run)
                progress()
    return judge.record()
