"""Several implementations taken through one forward pass together, a stage at a time.

Only one stage's arrays are alive at once, so memory does not grow with depth: a stage is
computed by all, compared with the reference, judged and forgotten.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np

from parity.comparison.difference import TapDifference
from parity.comparison.reference import ReferenceTap
from parity.comparison.snapshot import PassSnapshot
from parity.comparison.tap import compare_tap
from parity.inputs import Inputs, join_inputs
from parity.lockstep.comparator import Comparator, Compared, PassResult
from parity.lockstep.memory import release_freed_memory
from parity.lockstep.participants import ActiveRun, Chunk, Participant, Role, chunk_views
from parity.lockstep.threads import ENOUGH_ELEMENTS, ComparisonThreads
from parity.lockstep.timing import Timer
from parity.noise.operators import SummedTaps
from parity.subjects.base import Arrays, CachedSubject, DifferentiableSubject, Run, Subject
from parity.taps import AXES, split_name

Tick = Callable[[], None]

# Comparing goes on while the next run computes, until this much waits to be compared.
_WAITING_BYTES = 250_000_000


def run_lockstep(
    participants: Mapping[str, Sequence[Participant]],
    parts: Sequence[Inputs],
    reference: Subject,
    modes: Sequence[str],
    layers: int,
    *,
    chunks: Sequence[int] | None = None,
    summed: SummedTaps | None = None,
    timer: Timer | None = None,
    progress: Tick = lambda: None,
) -> PassResult:
    """Take all participants through some scenarios in step with the reference and judge the
    subject.

    Args:
        participants: who takes part, and how, at each dtype under judgement. A subject that takes
            part at several is run once.
        parts: scenarios that `parity.inputs.join_inputs` can run as one batch; judged apart. One
            alone to be differentiated: a parameter's gradient is that of the whole batch.
        reference: the float64 reference.
        modes: `free`, `isolated`; or `decode` alone, with `chunks`; or `grad` alone.
        layers: L.
        chunks: columns per call of a decode run.
        summed: knows how taps are summed, see `Comparator`.
        timer: counts what it costs.
        progress: called after every stage.
    """
    inputs = join_inputs(parts)

    def start(subject: Subject) -> Run:
        if "grad" in modes:
            return cast(DifferentiableSubject, subject).start_grad(inputs)
        if chunks is None:
            return subject.start(inputs)
        return cast(CachedSubject, subject).start_decode(inputs, chunks)

    reference_run = start(reference)
    runs: dict[tuple[int, str, frozenset[str]], Run] = {}
    unnamed = {lane: _unnamed(present) for lane, present in participants.items()}

    def run_of(subject: Subject, mode: str, lane: str) -> Run:
        if subject is reference:
            return reference_run
        # What an isolated run is forced to depends on what its lane's subject shows.
        key = id(subject), mode, unnamed[lane] if mode == "isolated" else frozenset()
        if key not in runs:
            runs[key] = start(subject)
        return runs[key]

    active_runs = {
        lane: [
            ActiveRun(e.subject, e.roles, mode, run_of(e.subject, mode, lane))
            for mode in modes
            for e in present
            if mode in e.modes and (mode != "isolated" or e.subject.can_force)
        ]
        for lane, present in participants.items()
    }
    snapshots = [
        PassSnapshot(lane, part.name, layers + 2, part.mask, batch, columns, chunks is not None)
        for lane in participants
        for part in parts
        for batch, columns in [part.tokens.shape]
        if "grad" not in modes
    ]
    with ComparisonThreads() as pool:
        lockstep = Lockstep(active_runs, parts, pool, snapshots, summed, timer)
        for views in zip(*(chunk_views(part, chunks) for part in parts), strict=True):
            for stage in range(layers + 2):
                # Before the logits, the largest of all taps.
                if stage == layers + 1 and chunks is None:
                    release_freed_memory()
                lockstep.stage(views, reference_run.step(), reference_run)
                progress()
    return lockstep.result()


@dataclass(frozen=True)
class StageOutput:
    """What a run shows of one stage.

    Attributes:
        taps: of the whole batch.
        compared: their distances from the reference, one for each part of the batch.
    """

    taps: Arrays
    compared: Sequence[Compared]


class Lockstep:
    """Takes every run from stage to stage and has each scenario's rows judged.

    Args:
        lanes: who is under way at each dtype; stepped in this order.
        parts: the scenarios whose rows, one after another, make the runs' batch.
        pool: where comparing goes on.
        snapshots: one a dtype and part, for what a report shows.
        summed: knows how taps are summed, see `Comparator`.
        timer: counts what computing and comparing cost.

    Attributes:
        comparators: one a dtype and part.
    """

    def __init__(
        self,
        lanes: Mapping[str, Sequence[ActiveRun]],
        parts: Sequence[Inputs],
        pool: ComparisonThreads,
        snapshots: Sequence[PassSnapshot | None] = (),
        summed: SummedTaps | None = None,
        timer: Timer | None = None,
    ) -> None:
        self.lanes, self.pool, self._timer = lanes, pool, timer or Timer()
        seats = [(lane, part) for lane in lanes for part in parts]
        self.comparators = [
            Comparator(lane, part.name, lanes[lane], pool, summed, snapshot, self._timer)
            for (lane, part), snapshot in zip(seats, snapshots or [None] * len(seats), strict=True)
        ]
        stops = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
        self._rows = [slice(*pair) for pair in pairwise(stops)]
        self._batch = stops[-1]
        self._misshapen: set[str] = set()
        # Not forced: what the subject does not name runs on in it, and in its noise too.
        self._unnamed = {lane: _unnamed(active_runs) for lane, active_runs in lanes.items()}
        # What takes part at several dtypes is kept until all have been compared.
        self._times = Counter(
            id(active.run) for active_runs in lanes.values() for active in active_runs
        )

    def stage(self, views: Sequence[Chunk], truth: Arrays, reference_run: Run) -> None:
        """Take every run one stage on, compare it with the reference, judge."""
        references = [
            {
                name: ReferenceTap(name, value, chunk.rows_of(name), chunk.mask)
                for name, value in self._of(truth, rows).items()
            }
            for chunk, rows in zip(views, self._rows, strict=True)
        ]
        stepped = {
            id(reference_run): StageOutput(truth, [self._compare(one, None) for one in references])
        }
        left = Counter(self._times)
        for lane, active_runs in self.lanes.items():
            comparators = [comparator for comparator in self.comparators if comparator.lane == lane]
            for comparator, chunk, one in zip(comparators, views, references, strict=True):
                comparator.begin_stage(chunk, one)
            waiting: deque[tuple[ActiveRun, int]] = deque()
            for active in active_runs:
                run = id(active.run)
                step = stepped.pop(run, None) or self._step(lane, active, truth, references)
                left[run] -= 1
                if left[run]:
                    stepped[run] = step
                for comparator, rows, found in zip(
                    comparators, self._rows, step.compared, strict=True
                ):
                    comparator.add(active, self._of(step.taps, rows), found)
                waiting.append((active, sum(value.nbytes for value in step.taps.values())))
                del step
                while sum(size for _, size in waiting) > _WAITING_BYTES:
                    first, _ = waiting.popleft()
                    for comparator in comparators:
                        comparator.wait_for(first)
            for comparator in comparators:
                comparator.finish_stage()

    def _step(
        self,
        lane: str,
        active: ActiveRun,
        truth: Arrays,
        references: Sequence[Mapping[str, ReferenceTap]],
    ) -> StageOutput:
        """Take a run one stage on, and begin to compare what it shows."""
        with self._timer.measure(_expense(active)):
            taps = active.run.step(self._force(lane, active, truth))
        # What the subject lacks needs no noise.
        if active.mode == "isolated" and not active.is_subject:
            taps = {n: x for n, x in taps.items() if split_name(n)[0] not in self._unnamed[lane]}
        if active.is_subject:
            self._misshapen |= {
                n for n, value in taps.items() if n in truth and value.shape != truth[n].shape
            }
        return StageOutput(
            taps,
            [
                self._compare(one, self._of(taps, rows), locate=active.is_subject)
                for one, rows in zip(references, self._rows, strict=True)
            ],
        )

    def _compare(
        self, references: Mapping[str, ReferenceTap], taps: Arrays | None, *, locate: bool = False
    ) -> Compared:
        """Begin to compare taps, or None for the reference's own, with the reference."""
        if taps is None:
            return [self.pool.submit_if_large(0, _nothing, references)]
        tasks, group, size = [], [], 0
        for name, value in taps.items():
            if name in references:
                group.append((references[name], value))
                size += value.size
            if size >= ENOUGH_ELEMENTS:
                tasks.append(self.pool.submit_if_large(size, self._distances, group, locate))
                group, size = [], 0
        return [*tasks, self.pool.submit_if_large(size, self._distances, group, locate)]

    def _distances(
        self, pairs: Sequence[tuple[ReferenceTap, np.ndarray]], locate: bool
    ) -> dict[str, TapDifference]:
        """Return by name how far some taps are from the reference."""
        with self._timer.measure("comparing", processor=True):
            return {tap.name: compare_tap(tap, value, locate=locate) for tap, value in pairs}

    def result(self) -> PassResult:
        """Return what has been found in all parts."""
        return PassResult.join([comparator.result() for comparator in self.comparators])

    def _of(self, taps: Mapping[str, np.ndarray], rows: slice) -> Arrays:
        """Return one part's rows of each tap; what has no such rows is left for all to see."""
        return {
            name: value[rows]
            if AXES.get(split_name(name)[0], "")[:1] == "B" and value.shape[:1] == (self._batch,)
            else value
            for name, value in taps.items()
        }

    def _force(self, lane: str, active: ActiveRun, truth: Arrays) -> Arrays | None:
        """Return the reference's values for an isolated run, as far as the lane's subject has them.

        Those of another shape are left out, and the logits, which nothing is computed of.
        """
        if active.mode != "isolated":
            return None
        useless = self._misshapen | {"logits"}
        return {
            name: value
            for name, value in truth.items()
            if name not in useless and split_name(name)[0] not in self._unnamed[lane]
        }


def _unnamed(present: Iterable[Participant | ActiveRun]) -> frozenset[str]:
    """Return the kinds of taps that a lane's subject lacks."""
    judged = [one.subject.absent for one in present if Role.SUBJECT in one.roles]
    return frozenset[str]().union(*judged)


def _nothing(references: Mapping[str, ReferenceTap]) -> dict[str, TapDifference]:
    """Return how far the reference is from itself."""
    found = {}
    for name, reference in references.items():
        zeros = np.zeros(reference.live.shape)
        found[name] = TapDifference(zeros, zeros, reference.live, dtype=reference.array.dtype.name)
    return found


def _expense(active: ActiveRun) -> str | None:
    """Return under which name a run's seconds are counted, None for what is no cost of taps."""
    if Role.PRODUCTION in active.roles:
        return f"bare_{active.mode}"
    return f"subject_{active.mode}" if active.is_subject else None
