"""Judging a stage that several implementations have computed, and what a pass adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from parity.comparison.attention import Movement, bound_probabilities, measure_movement
from parity.comparison.difference import TapDifference
from parity.comparison.extent import extent
from parity.comparison.logits import distance_of_logits, explain_flips
from parity.comparison.reference import ReferenceTap
from parity.comparison.snapshot import PassSnapshot
from parity.comparison.tolerance import LIMITS, UNIT_ROUNDOFF, noise_floor
from parity.lockstep.participants import ActiveRun, Chunk, Role
from parity.lockstep.threads import ComparisonThreads
from parity.lockstep.timing import Timer
from parity.lockstep.witnesses import WitnessSummary
from parity.noise.chains import runs_one_operator
from parity.noise.operators import SummedTaps
from parity.noise.widen import Floor, widened_floor
from parity.result import TapResult, WitnessResult
from parity.subjects.base import ReadArrays, Subject
from parity.taps import split_name

# Tasks that compare taps with the reference, each some of them by name.
Compared = Sequence[Future[dict[str, TapDifference]]]


@dataclass
class PassResult:
    """Everything learnt from one pass."""

    rows: list[TapResult] = field(default_factory=list)
    witnesses: list[WitnessResult] = field(default_factory=list)
    unmatched: set[str] = field(default_factory=set)
    snapshots: list[PassSnapshot] = field(default_factory=list)

    @classmethod
    def join(cls, parts: Sequence[PassResult], dtypes: Sequence[str] = ()) -> PassResult:
        """Return what several passes found, in their order, or sorted by dtype if these are
        given.
        """

        def at(one: TapResult | WitnessResult | PassSnapshot) -> int:
            return dtypes.index(one.lane) if dtypes else 0

        return cls(
            sorted((row for part in parts for row in part.rows), key=at),
            sorted((row for part in parts for row in part.witnesses), key=at),
            set().union(*(part.unmatched for part in parts)),
            sorted((snapshot for part in parts for snapshot in part.snapshots), key=at),
        )


class Comparator:
    """Compares what the runs compute for one scenario, stage by stage, and keeps the findings.

    `begin_stage`, `add` every run, `finish_stage`. Comparing goes on in the background meanwhile.

    Args:
        lane: dtype under judgement.
        scenario: name of the inputs.
        active_runs: who is under way; added in this order.
        pool: compares several taps at a time.
        summed: knows how taps are summed; without it the noise is what was measured.
        snapshot: keeps what a report shows of it, if given.
        timer: counts what comparing costs.
    """

    def __init__(
        self,
        lane: str,
        scenario: str,
        active_runs: Sequence[ActiveRun],
        pool: ComparisonThreads,
        summed: SummedTaps | None = None,
        snapshot: PassSnapshot | None = None,
        timer: Timer | None = None,
    ) -> None:
        self._timer = timer or Timer()
        self.lane, self.scenario, self.snapshot = lane, scenario, snapshot
        self._summed = summed
        self._before: ReadArrays = {}
        self.active_runs, self.pool = active_runs, pool
        self.rows: list[TapResult] = []
        self.unmatched: set[str] = set()
        self._witnesses = {p.subject.name: WitnessSummary() for p in active_runs if p.is_witness}
        self._chunk: Chunk
        self._references: Mapping[str, ReferenceTap] = {}
        self._shown: ReadArrays = {}
        self._pending: dict[ActiveRun, PendingComparison] = {}
        self._found: dict[ActiveRun, dict[str, TapDifference]] = {}

    def begin_stage(self, chunk: Chunk, references: Mapping[str, ReferenceTap]) -> None:
        """Begin a stage with the reference's taps."""
        self._chunk, self._references, self._shown, self._found = chunk, references, {}, {}

    def add(self, active: ActiveRun, taps: ReadArrays, compared: Compared) -> None:
        """Take note of a run's taps, and of their comparison with the reference that is under
        way.
        """
        missing = _unmatched(taps, self._references, active.subject)
        moved, gap = {}, None
        if active.is_subject:
            self.unmatched |= missing
            moved = self._movements(active, taps)
            self._shown = self._shown or taps
        if active.is_witness:
            self._witnesses[active.subject.name].unmatched |= missing
            gap = self._gap(taps)
        self._pending[active] = PendingComparison(compared, moved, gap)

    def wait_for(self, active: ActiveRun) -> None:
        """Wait until a run's taps have been compared, after which they may be dropped."""
        pending = self._pending.pop(active, None)
        if pending is None:
            return
        found = {n: one for task in pending.compared for n, one in task.result().items()}
        for name, future in pending.moved.items():
            bound_probabilities(found[name], *future.result())
        if pending.gap is not None:
            witness = self._witnesses[active.subject.name]
            witness.subject_gap = max(witness.subject_gap, pending.gap.result())
        self._found[active] = found

    def finish_stage(self) -> None:
        """End the stage: wait for what is being compared, and judge."""
        for active in self.active_runs:
            self.wait_for(active)
        at_hand = self._shown  # the first judged run's; the others' are gone
        for active in self.active_runs:
            if active.is_subject:
                rows = [self._row(active, name, at_hand.get(name)) for name in self._found[active]]
                failed = any(not row.passed for row in rows)
                if self.snapshot is not None:
                    self.snapshot.add_attention(
                        self._references, at_hand, failed, self._chunk.start_of("mask")
                    )
                self.rows += rows
                at_hand = {}
            if active.is_witness:
                self._note(active)
        self._before = {
            n: g.array for n, g in self._references.items() if g.kind == "layers.output"
        }
        self._references, self._shown, self._found = {}, {}, {}

    def _movements(self, active: ActiveRun, taps: ReadArrays) -> dict[str, Future[Movement]]:
        """Begin to measure how far weights moved, and how far their scores account for that.

        An isolated run's weights come of the reference's scores, not of its own.
        """
        found = {}
        for name in taps:
            scores = name.replace("attn_probs", "attn_scores")
            if split_name(name)[0] != "layers.attn_probs" or active.mode == "isolated":
                continue
            if not {name, scores} <= set(self._references):
                continue
            pairs = [(taps[n], self._references[n]) for n in (scores, name) if n in taps]
            if len(pairs) == 2 and all(t.shape == reference.array.shape for t, reference in pairs):
                found[name] = self.pool.submit_if_large(
                    taps[name].size, measure_movement, *pairs[0], *pairs[1]
                )
        return found

    def _gap(self, taps: ReadArrays) -> Future[float] | None:
        """Begin to measure witness against subject where every difference ends up: the logits."""
        if "logits" not in taps or "logits" not in self._shown:
            return None
        ours, theirs = self._shown["logits"], taps["logits"]
        if ours.shape != theirs.shape:
            return None
        valid = self._chunk.valid

        def distance() -> float:
            with self._timer.measure("comparing", processor=True):
                return distance_of_logits(ours, theirs, valid)

        return self.pool.submit_if_large(ours.size, distance)

    def result(self) -> PassResult:
        """Return what has been found."""
        witnesses = [
            self._witnesses[p.subject.name].row(p, self.lane, self.scenario)
            for p in self.active_runs
            if p.is_witness
        ]
        snapshots = [] if self.snapshot is None else [self.snapshot]
        return PassResult(self.rows, witnesses, self.unmatched, snapshots)

    def _row(self, active: ActiveRun, name: str, at_hand: np.ndarray | None) -> TapResult:
        found = self._found[active][name]
        chained = active.mode == "isolated" and not runs_one_operator(name, active.subject.absent)
        # Several operators between two forced taps run as freely as a whole pass does; and the last
        # of them may be summed in another order than measured: 7.4 times the noise has been seen.
        as_mode = "free" if chained else active.mode
        limits = LIMITS[self.lane].rho(as_mode), LIMITS[self.lane].peak(as_mode)
        honest = self._noise(active, name)
        measured = self._measured(active, name, honest)
        floor = self._floor(active, name, measured, None if chained else limits)
        with np.errstate(over="ignore"):  # against a reference of nothing
            rho = np.where(found.live, found.relative / floor.norm, 0.0)
            peak_rho = np.where(found.live, found.peak / floor.peak, 0.0)
        if name == "logits":
            explain_flips(found, honest, limits[0] * floor.norm / measured.norm)
        at = np.unravel_index(int(np.argmax(rho)), rho.shape)
        mode = "production" if Role.PRODUCTION in active.roles else active.mode
        if self.snapshot is not None:
            self.snapshot.add_errors(mode, name, rho, found.live, self._chunk.start_of(name))
        return TapResult(
            tap=name,
            lane=self.lane,
            scenario=self.scenario,
            mode=mode,
            step=self._chunk.step,
            dtype=found.dtype,
            error=float(found.relative.max()),
            noise=float(floor.norm[at]),
            rho=float(rho[at]),
            limit=limits[0],
            peak_rho=float(peak_rho.max()),
            peak_limit=limits[1],
            worst=found.worst,
            problems=tuple(found.problems),
            facts=found.facts,
            extent=extent(found, rho, limits[0], self._references[name], at_hand, floor.norm),
            structural=found.structural,
            noise_from=floor.source,
            chained=chained,
        )

    def _measured(self, active: ActiveRun, name: str, honest: Sequence[TapDifference]) -> Floor:
        """Return a tap's noise as honest variants have it."""
        live = self._found[active][name].live
        minimum = LIMITS[self.lane].floor * UNIT_ROUNDOFF[self.lane]
        return Floor(
            noise_floor([d.relative for d in honest], live, minimum),
            noise_floor([d.peak for d in honest], live, minimum),
        )

    def _floor(
        self, active: ActiveRun, name: str, floor: Floor, limits: tuple[float, float] | None
    ) -> Floor:
        """Return a tap's noise on any machine; `limits` are given where it is one operator's."""
        found = self._found[active][name]
        governed = active.mode == "isolated" and self.lane != "f64" and not found.problems
        if self._summed is None or limits is None or not governed:
            return floor
        references = {
            **self._before,
            **{n: reference.array for n, reference in self._references.items()},
        }
        operator = self._summed.of(name, references, self._chunk.mask, self.lane)
        if operator is None:
            return floor
        return widened_floor(floor, found, self._references[name], operator, limits)

    def _note(self, active: ActiveRun) -> None:
        """Hold a stage of a witness to the noise of the precision it really works in."""
        witness = self._witnesses[active.subject.name]
        effective = max(self.lane, active.subject.internal_dtype, key=lambda d: UNIT_ROUNDOFF[d])
        role = Role.NOISE if effective == self.lane else Role.NOISE_F32
        minimum = LIMITS[effective].floor * UNIT_ROUNDOFF[effective]
        for name, found in self._found[active].items():
            honest = self._honest(role, active, name)
            floor = noise_floor([d.relative for d in honest], found.live, minimum)
            with np.errstate(over="ignore"):  # against a reference of nothing
                rho = float(np.where(found.live, found.relative / floor, 0.0).max())
            witness.note(name, found, rho)

    def _noise(self, judged: ActiveRun, name: str) -> list[TapDifference]:
        """Return what honest runs at this dtype differ by on one tap.

        Where there are none, those at another dtype tell: rounding is proportional to it.
        """
        return self._honest(Role.NOISE, judged, name) or [
            found.scale(UNIT_ROUNDOFF[self.lane] / UNIT_ROUNDOFF["f32"])
            for found in self._honest(Role.NOISE_F32, judged, name)
        ]

    def _honest(self, role: Role, judged: ActiveRun, name: str) -> list[TapDifference]:
        """Return what the runs of `role`, other than the judged one, differ by on one tap."""
        shape = self._found[judged][name].relative.shape
        found = [
            self._found[p][name]
            for p in self.active_runs
            if role in p.roles
            and p.mode == judged.mode
            and p is not judged
            and name in self._found[p]
        ]
        # A run that overflowed is no measure of rounding: it would excuse everything.
        return [d for d in found if d.relative.shape == shape and np.isfinite(d.relative).all()]


@dataclass(frozen=True)
class PendingComparison:
    """What is being computed about a run's stage."""

    compared: Compared
    moved: dict[str, Future[Movement]]
    gap: Future[float] | None


def _unmatched(taps: ReadArrays, truth: Mapping[str, ReferenceTap], subject: Subject) -> set[str]:
    """Return taps on one side only that have not been declared absent."""
    missing = {n for n in truth if n not in taps and split_name(n)[0] not in subject.absent}
    return missing | {name for name in taps if name not in truth}
