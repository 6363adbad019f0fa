"""Several implementations walked through one forward pass together, a stage at a time.

Only one stage's arrays are alive at once, so memory does not grow with depth: a stage is
computed by all, compared with the gold, judged and forgotten.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import cast

import numpy as np

from parity import clock
from parity.exhibit import Exhibit
from parity.judge import Judge, PassRecord
from parity.parties import Chunk, Entry, Party, chunk_views
from parity.scenarios import Inputs, joined
from parity.subjects.base import Arrays, CachedSubject, DifferentiableSubject, Run, Subject
from parity.taps import AXES, split_name

Progress = Callable[[], None]

# Comparing goes on while the next party computes, until this much waits to be compared.
_WAITING_BYTES = 250_000_000


def walk(
    lane: str,
    parts: Sequence[Inputs],
    gold: Subject,
    entries: Sequence[Entry],
    modes: Sequence[str],
    layers: int,
    *,
    chunks: Sequence[int] | None = None,
    progress: Progress = lambda: None,
) -> PassRecord:
    """Run all parties over some scenarios in step with the gold and judge the subject.

    Args:
        lane: dtype under judgement.
        parts: scenarios that `parity.scenarios.joined` can run as one batch; judged apart. One
            alone to be differentiated: a parameter's gradient is that of the whole batch.
        gold: the float64 reference.
        entries: who takes part, and how.
        modes: `free`, `isolated`; or `decode` alone, with `chunks`; or `grad` alone.
        layers: L.
        chunks: columns per call of a decode run.
        progress: called after every stage.
    """
    inputs = joined(parts)

    def start(subject: Subject) -> Run:
        if "grad" in modes:
            return cast(DifferentiableSubject, subject).start_grad(inputs)
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
    exhibits = [
        Exhibit(lane, part.name, layers + 2, None if chunks else part.mask, *part.tokens.shape)
        for part in parts
        if "grad" not in modes
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lockstep = Lockstep(lane, parts, parties, pool, exhibits)
        for views in zip(*(chunk_views(part, chunks) for part in parts), strict=True):
            for _ in range(layers + 2):
                lockstep.stage(views, gold_run.step(), gold_run)
                progress()
    return lockstep.record()


class Lockstep:
    """Takes every party from stage to stage and has each scenario's rows judged.

    Args:
        lane: dtype under judgement.
        parts: the scenarios whose rows, one after another, make the parties' batch.
        parties: who is under way; stepped in this order.
        pool: where comparing goes on.
        exhibits: one a part, for what a report shows.

    Attributes:
        judges: one a part.
    """

    def __init__(
        self,
        lane: str,
        parts: Sequence[Inputs],
        parties: Sequence[Party],
        pool: ThreadPoolExecutor,
        exhibits: Sequence[Exhibit | None] = (),
    ) -> None:
        self.parties = parties
        self.judges = [
            Judge(lane, part.name, parties, pool, exhibit)
            for part, exhibit in zip(parts, exhibits or [None] * len(parts), strict=True)
        ]
        stops = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
        self._rows = [slice(*pair) for pair in pairwise(stops)]
        self._batch = stops[-1]
        self._misshapen: set[str] = set()

    def stage(self, views: Sequence[Chunk], truth: Arrays, gold_run: Run) -> None:
        """Take every party one stage on, compare it with the gold, judge."""
        for judge, chunk, rows in zip(self.judges, views, self._rows, strict=True):
            judge.open(chunk, self._of(truth, rows))
        waiting: deque[tuple[Party, int]] = deque()
        for party in self.parties:
            with clock.counted(_expense(party)):
                taps = truth if party.run is gold_run else party.run.step(self._force(party, truth))
            if party.judged:
                self._misshapen |= {
                    n for n, value in taps.items() if n in truth and value.shape != truth[n].shape
                }
            for judge, rows in zip(self.judges, self._rows, strict=True):
                judge.hear(party, None if taps is truth else self._of(taps, rows))
            waiting.append((party, sum(value.nbytes for value in taps.values())))
            del taps
            while sum(size for _, size in waiting) > _WAITING_BYTES:
                first, _ = waiting.popleft()
                for judge in self.judges:
                    judge.collect(first)
        for judge in self.judges:
            judge.settle()

    def record(self) -> PassRecord:
        """Return what has been found in all parts."""
        records = [judge.record() for judge in self.judges]
        return PassRecord(
            [row for record in records for row in record.rows],
            [row for record in records for row in record.witnesses],
            set().union(*(record.unmatched for record in records)),
            [exhibit for record in records for exhibit in record.exhibits],
        )

    def _of(self, taps: Mapping[str, np.ndarray], rows: slice) -> Arrays:
        """Return one part's rows of each tap; what has no such rows is left for all to see."""
        return {
            name: value[rows]
            if AXES.get(split_name(name)[0], "")[:1] == "B" and value.shape[:1] == (self._batch,)
            else value
            for name, value in taps.items()
        }

    def _force(self, party: Party, truth: Arrays) -> Arrays | None:
        """Return the gold's values for an isolated party, less those of another shape."""
        if party.mode != "isolated":
            return None
        return {name: value for name, value in truth.items() if name not in self._misshapen}


def _expense(party: Party) -> str | None:
    """Return under which name a party's seconds are counted, None for what is no cost of taps."""
    if "production" in party.roles:
        return "bare"
    return f"subject_{party.mode}" if party.judged else None
