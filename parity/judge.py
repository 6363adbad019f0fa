"""Judging a stage that several implementations have computed, and what a pass adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from parity.attention_maps import row_sum_allowance, total_variation
from parity.compare import against, difference
from parity.gold import Difference, Gold
from parity.parties import Chunk, Party
from parity.result import TapRow, WitnessRow
from parity.subjects.base import Run, Subject
from parity.taps import AXES, split_name
from parity.tolerance import LIMITS, UNIT_ROUNDOFF, noise_floor

Arrays = Mapping[str, np.ndarray]


@dataclass
class PassRecord:
    """Everything learnt from one pass of one lane over one scenario."""

    rows: list[TapRow] = field(default_factory=list)
    witnesses: list[WitnessRow] = field(default_factory=list)
    unmatched: set[str] = field(default_factory=set)


class Judge:
    """Compares the parties' stages as they come, and keeps what it finds.

    Args:
        lane: dtype under judgement.
        scenario: name of the inputs.
        parties: who is under way; stepped in this order.
        pool: compares several taps at a time.
    """

    def __init__(
        self, lane: str, scenario: str, parties: Sequence[Party], pool: ThreadPoolExecutor
    ) -> None:
        self.lane, self.scenario = lane, scenario
        self.parties, self.pool = parties, pool
        self.rows: list[TapRow] = []
        self.unmatched: set[str] = set()
        self._misshapen: set[str] = set()
        self._testimonies = {p.subject.name: Testimony() for p in parties if p.testifies}

    def stage(self, chunk: Chunk, truth: Arrays, gold_run: Run) -> None:
        """Take every party one stage on, compare it with the gold, judge."""
        golds = {
            name: Gold(name, value, chunk.rows_of(name), chunk.mask)
            for name, value in truth.items()
        }
        shown: Arrays = {}
        for party in self.parties:
            force = _force(party, truth, self._misshapen)
            taps = truth if party.run is gold_run else party.run.step(force)
            party.differences = _compare(self.pool, golds, taps)
            if party.judged:
                self.unmatched |= _unmatched(taps, truth, party.subject)
                self._misshapen |= {
                    name for name in party.differences if taps[name].shape != truth[name].shape
                }
                _bound_probabilities(party, taps, golds)
                shown = shown or taps
            if party.testifies:
                testimony = self._testimonies[party.subject.name]
                testimony.unmatched |= _unmatched(taps, truth, party.subject)
                testimony.note_gap(taps, shown, chunk)
        for party in self.parties:
            if party.judged:
                self.rows += [self._row(party, name, chunk.step) for name in party.differences]
            if party.testifies:
                self._testimonies[party.subject.name].note(self.lane, party, self.parties)

    def record(self) -> PassRecord:
        """Return what has been found."""
        witnesses = [
            self._testimonies[p.subject.name].row(p, self.lane, self.scenario)
            for p in self.parties
            if p.testifies
        ]
        return PassRecord(self.rows, witnesses, self.unmatched)

    def _row(self, party: Party, name: str, step: int) -> TapRow:
        limits, found = LIMITS[self.lane], party.differences[name]
        honest = _honest(self.parties, "variant", party, name)
        minimum = limits.floor * UNIT_ROUNDOFF[self.lane]
        floor = noise_floor([d.relative for d in honest], found.live, minimum)
        peak_floor = noise_floor([d.peak for d in honest], found.live, minimum)
        rho = np.where(found.live, found.relative / floor, 0.0)
        if name == "logits":
            _explain_flips(found, honest, limits.rho(party.mode))
        at = np.unravel_index(int(np.argmax(rho)), rho.shape)
        return TapRow(
            tap=name,
            lane=self.lane,
            scenario=self.scenario,
            mode="production" if "production" in party.roles else party.mode,
            step=step,
            dtype=found.dtype,
            error=float(found.relative.max()),
            noise=float(floor[at]),
            rho=float(rho[at]),
            limit=limits.rho(party.mode),
            peak_rho=float(np.where(found.live, found.peak / peak_floor, 0.0).max()),
            peak_limit=limits.peak(party.mode),
            worst=found.worst,
            problems=tuple(found.problems),
            facts=found.facts,
        )


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

    def note(self, lane: str, party: Party, parties: Sequence[Party]) -> None:
        """Hold a stage of the witness to the noise of the precision it really works in."""
        effective = max(lane, party.subject.internal_dtype, key=lambda d: UNIT_ROUNDOFF[d])
        role = "variant" if effective == lane else "interior"
        minimum = LIMITS[effective].floor * UNIT_ROUNDOFF[effective]
        for name, found in party.differences.items():
            honest = _honest(parties, role, party, name)
            floor = noise_floor([d.relative for d in honest], found.live, minimum)
            rho = float(np.where(found.live, found.relative / floor, 0.0).max())
            self.compared.add(name)
            self.problems += [f"{name}: {problem}" for problem in found.problems]
            if AXES[split_name(name)[0]] != "R":
                self.error = max(self.error, float(found.relative.max()))
            if rho > self.rho or not self.worst_tap:
                self.worst_tap, self.rho = name, rho

    def note_gap(self, taps: Arrays, subject: Arrays, chunk: Chunk) -> None:
        """Measure witness against subject where every difference ends up: in the logits."""
        for name, value in taps.items():
            if name == "logits" and name in subject and subject[name].shape == value.shape:
                found = difference(name, subject[name], value, chunk.valid, chunk.mask)
                self.subject_gap = max(self.subject_gap, float(found.relative.max()))

    def row(self, party: Party, lane: str, scenario: str) -> WitnessRow:
        """Return the witness's row of the report."""
        return WitnessRow(
            witness=party.subject.name,
            lane=lane,
            scenario=scenario,
            mode=party.mode,
            is_gold=party.is_gold,
            compared=len(self.compared),
            absent=tuple(sorted(party.subject.absent)),
            unmatched=tuple(sorted(self.unmatched)),
            worst_tap=self.worst_tap,
            rho=self.rho,
            limit=LIMITS[lane].witness,
            error=self.error,
            subject_gap=self.subject_gap,
            problems=tuple(self.problems[:8]),
        )


def _honest(parties: Sequence[Party], role: str, judged: Party, name: str) -> list[Difference]:
    """Return what the parties of `role`, other than the judged one, differ by on one tap."""
    shape = judged.differences[name].relative.shape
    found = [
        p.differences[name]
        for p in parties
        if role in p.roles and p.mode == judged.mode and p is not judged and name in p.differences
    ]
    return [d for d in found if d.relative.shape == shape]


def _force(party: Party, truth: Arrays, misshapen: set[str]) -> Arrays | None:
    """Return the gold's values for an isolated party, less those of another shape."""
    if party.mode != "isolated":
        return None
    return {name: value for name, value in truth.items() if name not in misshapen}


def _compare(
    pool: ThreadPoolExecutor, golds: Mapping[str, Gold], taps: Arrays
) -> dict[str, Difference]:
    """Compare a stage's taps, several at a time: NumPy works outside the interpreter's lock."""
    shared = [name for name in taps if name in golds]
    found = pool.map(lambda name: against(golds[name], taps[name]), shared)
    return dict(zip(shared, found, strict=True))


def _unmatched(taps: Arrays, truth: Arrays, subject: Subject) -> set[str]:
    """Return taps on one side only that have not been declared absent."""
    missing = {n for n in truth if n not in taps and split_name(n)[0] not in subject.absent}
    return missing | {name for name in taps if name not in truth}


def _bound_probabilities(party: Party, taps: Arrays, golds: Mapping[str, Gold]) -> None:
    """Require probabilities that add up, and moved no more than their scores account for."""
    for name, result in party.differences.items():
        scores = name.replace("attn_probs", "attn_scores")
        if name == scores or scores not in taps or result.problems or party.mode == "isolated":
            continue
        if taps[scores].shape != golds[scores].array.shape:
            continue
        probs = taps[name]
        keeps = row_sum_allowance(probs.dtype, probs.shape[-1])
        if result.facts["row_sum_error"] > keeps:
            result.problems.append(
                f"rows of weights add up to 1 within {result.facts['row_sum_error']:.3g} only; "
                f"rounding explains {keeps:.3g}"
            )
        moved, allowed = total_variation(taps[scores], golds[scores], probs, golds[name])
        result.facts["total_variation"] = moved
        if moved > allowed:
            result.problems.append(
                f"total variation {moved:.3g}, but the scores explain {allowed:.3g} at most: "
                "mask or softmax differs"
            )


def _explain_flips(found: Difference, honest: Sequence[Difference], limit: float) -> None:
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
