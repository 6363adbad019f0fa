"""Judging a stage that several implementations have computed, and what a pass adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from parity.attention_maps import row_sum_allowance, total_variation
from parity.background import Background
from parity.exhibit import Exhibit
from parity.extent import extent
from parity.gold import Difference, Gold
from parity.logits import distance_of_logits
from parity.noise.chains import runs_one_operator
from parity.noise.operators import SummedTaps
from parity.noise.widen import Floor, widened_floor
from parity.parties import Chunk, Party
from parity.result import TapRow, WitnessRow
from parity.subjects.base import Subject
from parity.taps import AXES, split_name
from parity.tolerance import LIMITS, UNIT_ROUNDOFF, noise_floor

Arrays = Mapping[str, np.ndarray]
# Tasks that compare taps with the gold, each some of them by name.
Compared = Sequence[Future[dict[str, Difference]]]


@dataclass
class PassRecord:
    """Everything learnt from one walk."""

    rows: list[TapRow] = field(default_factory=list)
    witnesses: list[WitnessRow] = field(default_factory=list)
    unmatched: set[str] = field(default_factory=set)
    exhibits: list[Exhibit] = field(default_factory=list)


class Judge:
    """Compares what the parties compute for one scenario, stage by stage, and keeps the findings.

    `open` a stage, `hear` every party, `settle`. Comparing goes on in the background meanwhile.

    Args:
        lane: dtype under judgement.
        scenario: name of the inputs.
        parties: who is under way; heard in this order.
        pool: compares several taps at a time.
        summed: knows how taps are summed; without it the noise is what was measured.
        exhibit: keeps what a report shows of it, if given.
    """

    def __init__(
        self,
        lane: str,
        scenario: str,
        parties: Sequence[Party],
        pool: Background,
        summed: SummedTaps | None = None,
        exhibit: Exhibit | None = None,
    ) -> None:
        self.lane, self.scenario, self.exhibit = lane, scenario, exhibit
        self._summed = summed
        self._before: Arrays = {}
        self.parties, self.pool = parties, pool
        self.rows: list[TapRow] = []
        self.unmatched: set[str] = set()
        self._testimonies = {p.subject.name: Testimony() for p in parties if p.testifies}
        self._chunk: Chunk
        self._golds: Mapping[str, Gold] = {}
        self._shown: Arrays = {}
        self._heard: dict[Party, Heard] = {}
        self._found: dict[Party, dict[str, Difference]] = {}

    def open(self, chunk: Chunk, golds: Mapping[str, Gold]) -> None:
        """Begin a stage with the gold's taps."""
        self._chunk, self._golds, self._shown, self._found = chunk, golds, {}, {}

    def hear(self, party: Party, taps: Arrays, compared: Compared) -> None:
        """Take note of a party's taps, and of their comparison with the gold that is under way."""
        missing = _unmatched(taps, self._golds, party.subject)
        moved, gap = {}, None
        if party.judged:
            self.unmatched |= missing
            moved = self._movements(party, taps)
            self._shown = self._shown or taps
        if party.testifies:
            self._testimonies[party.subject.name].unmatched |= missing
            gap = self._gap(taps)
        self._heard[party] = Heard(compared, moved, gap)

    def collect(self, party: Party) -> None:
        """Wait until a party's taps have been compared, after which they may be dropped."""
        heard = self._heard.pop(party, None)
        if heard is None:
            return
        found = {n: one for task in heard.compared for n, one in task.result().items()}
        for name, future in heard.moved.items():
            _bound_probabilities(found[name], *future.result())
        if heard.gap is not None:
            testimony = self._testimonies[party.subject.name]
            testimony.subject_gap = max(testimony.subject_gap, heard.gap.result())
        self._found[party] = found

    def settle(self) -> None:
        """End the stage: wait for what is being compared, and judge."""
        for party in self.parties:
            self.collect(party)
        at_hand = self._shown  # the first judged party's; the others' are gone
        for party in self.parties:
            if party.judged:
                rows = [self._row(party, name, at_hand.get(name)) for name in self._found[party]]
                if self.exhibit is not None:
                    self.exhibit.look(self._golds, at_hand, rows, self._chunk.start_of("mask"))
                self.rows += rows
                at_hand = {}
            if party.testifies:
                self._note(party)
        self._before = {n: g.array for n, g in self._golds.items() if g.kind == "layers.output"}
        self._golds, self._shown, self._found = {}, {}, {}

    def _movements(self, party: Party, taps: Arrays) -> dict[str, Future[Movement]]:
        """Begin to measure how far weights moved, and how far their scores account for that.

        An isolated party's weights come of the gold's scores, not of its own.
        """
        found = {}
        for name in taps:
            scores = name.replace("attn_probs", "attn_scores")
            if split_name(name)[0] != "layers.attn_probs" or party.mode == "isolated":
                continue
            if not {name, scores} <= set(self._golds):
                continue
            pairs = [(taps[n], self._golds[n]) for n in (scores, name) if n in taps]
            if len(pairs) == 2 and all(t.shape == gold.array.shape for t, gold in pairs):
                found[name] = self.pool.begin(taps[name].size, _movement, *pairs[0], *pairs[1])
        return found

    def _gap(self, taps: Arrays) -> Future[float] | None:
        """Begin to measure witness against subject where every difference ends up: the logits."""
        if "logits" not in taps or "logits" not in self._shown:
            return None
        ours, theirs = self._shown["logits"], taps["logits"]
        if ours.shape != theirs.shape:
            return None
        return self.pool.begin(ours.size, distance_of_logits, ours, theirs, self._chunk.valid)

    def record(self) -> PassRecord:
        """Return what has been found."""
        witnesses = [
            self._testimonies[p.subject.name].row(p, self.lane, self.scenario)
            for p in self.parties
            if p.testifies
        ]
        exhibits = [] if self.exhibit is None else [self.exhibit]
        return PassRecord(self.rows, witnesses, self.unmatched, exhibits)

    def _row(self, party: Party, name: str, at_hand: np.ndarray | None) -> TapRow:
        found = self._found[party][name]
        chained = party.mode == "isolated" and not runs_one_operator(name, party.subject.absent)
        # Several operators between two forced taps run as freely as a whole pass does; and the last
        # of them may be summed in another order than measured: 7.4 times the noise has been seen.
        as_mode = "free" if chained else party.mode
        limits = LIMITS[self.lane].rho(as_mode), LIMITS[self.lane].peak(as_mode)
        honest = self._noise(party, name)
        measured = self._measured(party, name, honest)
        floor = self._floor(party, name, measured, None if chained else limits)
        with np.errstate(over="ignore"):  # against a gold of nothing
            rho = np.where(found.live, found.relative / floor.norm, 0.0)
            peak_rho = np.where(found.live, found.peak / floor.peak, 0.0)
        if name == "logits":
            _explain_flips(found, honest, limits[0] * floor.norm / measured.norm)
        at = np.unravel_index(int(np.argmax(rho)), rho.shape)
        mode = "production" if "production" in party.roles else party.mode
        if self.exhibit is not None:
            self.exhibit.fold(mode, name, rho, found.live, self._chunk.start_of(name))
        return TapRow(
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
            extent=extent(found, rho, limits[0], self._golds[name], at_hand, floor.norm),
            structural=found.structural,
            noise_from=floor.source,
            chained=chained,
        )

    def _measured(self, party: Party, name: str, honest: Sequence[Difference]) -> Floor:
        """Return a tap's noise as honest variants have it."""
        live = self._found[party][name].live
        minimum = LIMITS[self.lane].floor * UNIT_ROUNDOFF[self.lane]
        return Floor(
            noise_floor([d.relative for d in honest], live, minimum),
            noise_floor([d.peak for d in honest], live, minimum),
        )

    def _floor(
        self, party: Party, name: str, floor: Floor, limits: tuple[float, float] | None
    ) -> Floor:
        """Return a tap's noise on any machine; `limits` are given where it is one operator's."""
        found = self._found[party][name]
        governed = party.mode == "isolated" and self.lane != "f64" and not found.problems
        if self._summed is None or limits is None or not governed:
            return floor
        golds = {**self._before, **{n: gold.array for n, gold in self._golds.items()}}
        operator = self._summed.of(name, golds, self._chunk.mask, self.lane)
        if operator is None:
            return floor
        return widened_floor(floor, found, self._golds[name], operator, limits)

    def _note(self, party: Party) -> None:
        """Hold a stage of a witness to the noise of the precision it really works in."""
        testimony = self._testimonies[party.subject.name]
        effective = max(self.lane, party.subject.internal_dtype, key=lambda d: UNIT_ROUNDOFF[d])
        role = "variant" if effective == self.lane else "interior"
        minimum = LIMITS[effective].floor * UNIT_ROUNDOFF[effective]
        for name, found in self._found[party].items():
            honest = self._honest(role, party, name)
            floor = noise_floor([d.relative for d in honest], found.live, minimum)
            with np.errstate(over="ignore"):  # against a gold of nothing
                rho = float(np.where(found.live, found.relative / floor, 0.0).max())
            testimony.note(name, found, rho)

    def _noise(self, judged: Party, name: str) -> list[Difference]:
        """Return what honest runs at this dtype differ by on one tap.

        Where there are none, those at another dtype tell: rounding is proportional to it.
        """
        return self._honest("variant", judged, name) or [
            found.scaled(UNIT_ROUNDOFF[self.lane] / UNIT_ROUNDOFF["f32"])
            for found in self._honest("interior", judged, name)
        ]

    def _honest(self, role: str, judged: Party, name: str) -> list[Difference]:
        """Return what the parties of `role`, other than the judged one, differ by on one tap."""
        shape = self._found[judged][name].relative.shape
        found = [
            self._found[p][name]
            for p in self.parties
            if role in p.roles
            and p.mode == judged.mode
            and p is not judged
            and name in self._found[p]
        ]
        # A run that overflowed is no measure of rounding: it would excuse everything.
        return [d for d in found if d.relative.shape == shape and np.isfinite(d.relative).all()]


# How far weights moved, how far they may, what share of the rounding allowed for in that they use,
# and by how much rounding may keep rows from adding up to 1.
Movement = tuple[float, float, float, float]


@dataclass(frozen=True)
class Heard:
    """What is being computed about a party's stage."""

    compared: Compared
    moved: dict[str, Future[Movement]]
    gap: Future[float] | None


@dataclass
class Testimony:
    """What has been seen of one witness so far."""

    compared: set[str] = field(default_factory=set)
    unmatched: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    worst_tap: str = ""
    rho: float = 0.0
    error: float = 0.0
    subject_gap: float = 0.0

    def note(self, name: str, found: Difference, rho: float) -> None:
        """Add what was found of one tap."""
        self.compared.add(name)
        self.problems += [f"{name}: {problem}" for problem in found.problems]
        if AXES[split_name(name)[0]] != "R":
            self.error = max(self.error, float(found.relative.max()))
        if rho > self.rho or not self.worst_tap:
            self.worst_tap, self.rho = name, rho

    def row(self, party: Party, lane: str, scenario: str) -> WitnessRow:
        """Return the witness's row of the report."""
        return WitnessRow(
            witness=party.subject.name,
            lane=lane,
            scenario=scenario,
            mode=party.mode,
            is_gold=party.is_gold,
            compared=len(self.compared),
            absent=party.absent,
            unmatched=tuple(sorted(self.unmatched)),
            worst_tap=self.worst_tap,
            rho=self.rho,
            limit=LIMITS[lane].testimony(party.mode),
            error=self.error,
            subject_gap=self.subject_gap,
            problems=tuple(self.problems[:8]),
        )


def _unmatched(taps: Arrays, truth: Mapping[str, Gold], subject: Subject) -> set[str]:
    """Return taps on one side only that have not been declared absent."""
    missing = {n for n in truth if n not in taps and split_name(n)[0] not in subject.absent}
    return missing | {name for name in taps if name not in truth}


def _movement(
    scores: np.ndarray, gold_scores: Gold, probs: np.ndarray, gold_probs: Gold
) -> Movement:
    moved, allowed, share = total_variation(scores, gold_scores, probs, gold_probs)
    return moved, allowed, share, row_sum_allowance(probs.dtype, probs.shape[-1])


def _bound_probabilities(
    found: Difference, moved: float, allowed: float, share: float, keeps: float
) -> None:
    """Require probabilities that add up, and moved no more than their scores account for."""
    if found.problems:
        return
    if found.facts["row_sum_error"] > keeps:
        found.problems.append(
            f"rows of weights add up to 1 within {found.facts['row_sum_error']:.3g} only; "
            f"rounding explains {keeps:.3g}"
        )
    found.facts |= {"total_variation": moved, "total_variation_rounding": max(share, 0.0)}
    if moved > allowed:
        found.problems.append(
            f"total variation {moved:.3g}, but the scores explain {allowed:.3g} at most: "
            "mask or softmax differs"
        )


def _explain_flips(found: Difference, honest: Sequence[Difference], limit: np.ndarray) -> None:
    """A changed top-1 is explained where the gold's margin is within what noise moves logits by.

    The noise is that of honest variants at the same token: the subject's own range of movement
    always accounts for its own flips.
    """
    if "margin" not in found.tokens:
        return
    ranges = [d.tokens["range"] for d in honest if "range" in d.tokens]
    allowed = limit * noise_floor(ranges, found.live, 0.0)
    unexplained = found.tokens["margin"] > allowed
    found.facts["unexplained_flips"] = int(unexplained.sum())
    if unexplained.any():
        margins = np.where(unexplained, found.tokens["margin"], 0.0)
        at = np.unravel_index(int(np.argmax(margins)), margins.shape)
        found.problems.append(
            f"{int(unexplained.sum())} top-1 predictions differ beyond rounding; at row {at[0]}, "
            f"token {at[1]} the reference's margin is {margins[at]:.3g}, and "
            f"rounding explains {allowed[at]:.3g}"
        )
