"""Several implementations walked through one forward pass together, a stage at a time.

Only one stage's arrays are alive at once, so memory does not grow with depth: a stage is
computed by all, compared with the gold, judged and forgotten.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np

from parity import clock
from parity.background import ENOUGH_ELEMENTS, Background
from parity.distance import against
from parity.exhibit import Exhibit
from parity.gold import Difference, Gold
from parity.inputs import Inputs, joined
from parity.judge import Compared, Judge, PassRecord
from parity.memory import give_back
from parity.noise.operators import SummedTaps
from parity.parties import Chunk, Entry, Party, chunk_views
from parity.subjects.base import Arrays, CachedSubject, DifferentiableSubject, Run, Subject
from parity.taps import AXES, split_name

Progress = Callable[[], None]

# Comparing goes on while the next party computes, until this much waits to be compared.
_WAITING_BYTES = 250_000_000


def walk(
    entries: Mapping[str, Sequence[Entry]],
    parts: Sequence[Inputs],
    gold: Subject,
    modes: Sequence[str],
    layers: int,
    *,
    chunks: Sequence[int] | None = None,
    summed: SummedTaps | None = None,
    progress: Progress = lambda: None,
) -> PassRecord:
    """Run all parties over some scenarios in step with the gold and judge the subject.

    Args:
        entries: who takes part, and how, at each dtype under judgement. A subject that takes part
            at several is run once.
        parts: scenarios that `parity.inputs.joined` can run as one batch; judged apart. One
            alone to be differentiated: a parameter's gradient is that of the whole batch.
        gold: the float64 reference.
        modes: `free`, `isolated`; or `decode` alone, with `chunks`; or `grad` alone.
        layers: L.
        chunks: columns per call of a decode run.
        summed: knows how taps are summed, see `Judge`.
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
    runs: dict[tuple[int, str, frozenset[str]], Run] = {}
    unnamed = {lane: _unnamed(present) for lane, present in entries.items()}

    def run_of(subject: Subject, mode: str, lane: str) -> Run:
        if subject is gold:
            return gold_run
        # What an isolated run is forced to depends on what its lane's subject shows.
        key = id(subject), mode, unnamed[lane] if mode == "isolated" else frozenset()
        if key not in runs:
            runs[key] = start(subject)
        return runs[key]

    parties = {
        lane: [
            Party(e.subject, e.roles, mode, run_of(e.subject, mode, lane))
            for mode in modes
            for e in present
            if mode in e.modes and (mode != "isolated" or e.subject.can_force)
        ]
        for lane, present in entries.items()
    }
    exhibits = [
        Exhibit(lane, part.name, layers + 2, part.mask, batch, columns, chunks is not None)
        for lane in entries
        for part in parts
        for batch, columns in [part.tokens.shape]
        if "grad" not in modes
    ]
    with Background() as pool:
        lockstep = Lockstep(parties, parts, pool, exhibits, summed)
        for views in zip(*(chunk_views(part, chunks) for part in parts), strict=True):
            for stage in range(layers + 2):
                # Before the logits, the largest of all taps.
                if stage == layers + 1 and chunks is None:
                    give_back()
                lockstep.stage(views, gold_run.step(), gold_run)
                progress()
    return lockstep.record()


@dataclass(frozen=True)
class Stepped:
    """What a run shows of one stage.

    Attributes:
        taps: of the whole batch.
        compared: their distances from the gold, one for each part of the batch.
    """

    taps: Arrays
    compared: Sequence[Compared]


class Lockstep:
    """Takes every party from stage to stage and has each scenario's rows judged.

    Args:
        lanes: who is under way at each dtype; stepped in this order.
        parts: the scenarios whose rows, one after another, make the parties' batch.
        pool: where comparing goes on.
        exhibits: one a dtype and part, for what a report shows.
        summed: knows how taps are summed, see `Judge`.

    Attributes:
        judges: one a dtype and part.
    """

    def __init__(
        self,
        lanes: Mapping[str, Sequence[Party]],
        parts: Sequence[Inputs],
        pool: Background,
        exhibits: Sequence[Exhibit | None] = (),
        summed: SummedTaps | None = None,
    ) -> None:
        self.lanes, self.pool = lanes, pool
        seats = [(lane, part) for lane in lanes for part in parts]
        self.judges = [
            Judge(lane, part.name, lanes[lane], pool, summed, exhibit)
            for (lane, part), exhibit in zip(seats, exhibits or [None] * len(seats), strict=True)
        ]
        stops = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
        self._rows = [slice(*pair) for pair in pairwise(stops)]
        self._batch = stops[-1]
        self._misshapen: set[str] = set()
        # Not forced: what the subject does not name runs on in it, and in its noise too.
        self._unnamed = {lane: _unnamed(parties) for lane, parties in lanes.items()}
        # What takes part at several dtypes is kept until all have heard it.
        self._times = Counter(id(party.run) for parties in lanes.values() for party in parties)

    def stage(self, views: Sequence[Chunk], truth: Arrays, gold_run: Run) -> None:
        """Take every party one stage on, compare it with the gold, judge."""
        golds = [
            {
                name: Gold(name, value, chunk.rows_of(name), chunk.mask)
                for name, value in self._of(truth, rows).items()
            }
            for chunk, rows in zip(views, self._rows, strict=True)
        ]
        stepped = {id(gold_run): Stepped(truth, [self._compare(one, None) for one in golds])}
        left = Counter(self._times)
        for lane, parties in self.lanes.items():
            judges = [judge for judge in self.judges if judge.lane == lane]
            for judge, chunk, one in zip(judges, views, golds, strict=True):
                judge.open(chunk, one)
            waiting: deque[tuple[Party, int]] = deque()
            for party in parties:
                run = id(party.run)
                step = stepped.pop(run, None) or self._step(lane, party, truth, golds)
                left[run] -= 1
                if left[run]:
                    stepped[run] = step
                for judge, rows, found in zip(judges, self._rows, step.compared, strict=True):
                    judge.hear(party, self._of(step.taps, rows), found)
                waiting.append((party, sum(value.nbytes for value in step.taps.values())))
                del step
                while sum(size for _, size in waiting) > _WAITING_BYTES:
                    first, _ = waiting.popleft()
                    for judge in judges:
                        judge.collect(first)
            for judge in judges:
                judge.settle()

    def _step(
        self, lane: str, party: Party, truth: Arrays, golds: Sequence[Mapping[str, Gold]]
    ) -> Stepped:
        """Take a party one stage on, and begin to compare what it shows."""
        with clock.counted(_expense(party)):
            taps = party.run.step(self._force(lane, party, truth))
        if party.mode == "isolated" and not party.judged:  # what the subject lacks needs no noise
            taps = {n: x for n, x in taps.items() if split_name(n)[0] not in self._unnamed[lane]}
        if party.judged:
            self._misshapen |= {
                n for n, value in taps.items() if n in truth and value.shape != truth[n].shape
            }
        return Stepped(
            taps,
            [
                self._compare(one, self._of(taps, rows), locate=party.judged)
                for one, rows in zip(golds, self._rows, strict=True)
            ],
        )

    def _compare(
        self, golds: Mapping[str, Gold], taps: Arrays | None, *, locate: bool = False
    ) -> Compared:
        """Begin to compare taps, or None for the gold's own, with the gold."""
        if taps is None:
            return [self.pool.begin(0, _nothing, golds)]
        tasks, group, size = [], [], 0
        for name, value in taps.items():
            if name in golds:
                group.append((golds[name], value))
                size += value.size
            if size >= ENOUGH_ELEMENTS:
                tasks.append(self.pool.begin(size, _distances, group, locate))
                group, size = [], 0
        return [*tasks, self.pool.begin(size, _distances, group, locate)]

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

    def _force(self, lane: str, party: Party, truth: Arrays) -> Arrays | None:
        """Return the gold's values for an isolated party, as far as the lane's subject has them.

        Those of another shape are left out, and the logits, which nothing is computed of.
        """
        if party.mode != "isolated":
            return None
        useless = self._misshapen | {"logits"}
        return {
            name: value
            for name, value in truth.items()
            if name not in useless and split_name(name)[0] not in self._unnamed[lane]
        }


def _unnamed(present: Iterable[Entry | Party]) -> frozenset[str]:
    """Return the kinds of taps that a lane's subject lacks."""
    judged = [one.subject.absent for one in present if "subject" in one.roles]
    return frozenset[str]().union(*judged)


def _distances(pairs: Sequence[tuple[Gold, np.ndarray]], locate: bool) -> dict[str, Difference]:
    """Return by name how far some taps are from the gold."""
    with clock.counted("comparing", processor=True):
        return {gold.name: against(gold, value, locate=locate) for gold, value in pairs}


def _nothing(golds: Mapping[str, Gold]) -> dict[str, Difference]:
    """Return how far the gold is from itself."""
    found = {}
    for name, gold in golds.items():
        zeros = np.zeros(gold.live.shape)
        found[name] = Difference(zeros, zeros, gold.live, dtype=gold.array.dtype.name)
    return found


def _expense(party: Party) -> str | None:
    """Return under which name a party's seconds are counted, None for what is no cost of taps."""
    if "production" in party.roles:
        return f"bare_{party.mode}"
    return f"subject_{party.mode}" if party.judged else None
