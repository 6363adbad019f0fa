"""Several implementations walked through one forward pass together, a stage at a time.

Only one stage's arrays are alive at once, so memory does not grow with depth: a stage is
computed by all, compared with the gold, judged and forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from parity.attention_maps import total_variation
from parity.compare import against, difference
from parity.gold import Difference, Gold
from parity.result import TapRow, WitnessRow
from parity.scenarios import Inputs
from parity.subjects.base import CachedSubject, Run, Subject
from parity.taps import AXES, CACHE_TAPS, split_name
from parity.tolerance import LIMITS, UNIT_ROUNDOFF, Limits, noise_floor

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[], None]


@dataclass(frozen=True)
class Entry:
    """One implementation and what it is there for.

    Attributes:
        subject: the implementation.
        roles: `subject` is judged; so is `production`, the same model without taps; a `variant`
            is an honest run whose error is the noise; a `witness` must agree with the gold;
            `interior` is the noise of what computes in float32 whatever it is given.
        modes: of `free`, `isolated` and `decode`, those it runs in.
    """

    subject: Subject
    roles: frozenset[str]
    modes: tuple[str, ...]


@dataclass
class Party:
    """An entry on its way through a pass in one mode, with what its last stage differed by."""

    subject: Subject
    roles: frozenset[str]
    mode: str
    run: Run
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def testifies(self) -> bool:
        """Whether this is a witness's own run, not one on the gold's inputs."""
        return "witness" in self.roles and self.mode != "isolated"


@dataclass
class Tally:
    """What has been seen of one witness so far."""

    compared: set[str] = field(default_factory=set)
    unmatched: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    worst_tap: str = ""
    rho: float = 0.0
    error: float = 0.0
    subject_gap: float = 0.0


@dataclass
class PassRecord:
    """Everything learnt from one pass of one lane over one scenario."""

    rows: list[TapRow] = field(default_factory=list)
    witnesses: list[WitnessRow] = field(default_factory=list)
    unmatched: set[str] = field(default_factory=set)


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
    walkers = [
        Party(e.subject, e.roles, mode, gold_run if e.subject is gold else start(e.subject))
        for mode in modes
        for e in entries
        if mode in e.modes and (mode != "isolated" or e.subject.can_force)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judge = _Judge(lane, inputs.name, walkers, pool)
        for chunk in _chunk_views(inputs, chunks):
            for _ in range(layers + 2):
                truth = gold_run.step()
                judge.stage(chunk, truth, gold_run)
                progress()
    return judge.record()


class _Judge:
    """Compares the parties' stages as they come, and keeps the verdicts."""

    def __init__(
        self, lane: str, scenario: str, walkers: Sequence[Party], pool: ThreadPoolExecutor
    ) -> None:
        self.lane, self.scenario = lane, scenario
        self.walkers, self.pool = walkers, pool
        self.rows: list[TapRow] = []
        self.unmatched: set[str] = set()
        self.misshapen: set[str] = set()
        self.tallies = {p.subject.name: Tally() for p in walkers if p.testifies}

    def stage(self, chunk: Chunk, truth: Arrays, gold_run: Run) -> None:
        """Take every party one stage on, compare it with the gold, judge."""
        golds = {
            name: Gold(name, value, chunk.rows_of(name), chunk.mask)
            for name, value in truth.items()
        }
        shown: Arrays = {}
        for party in self.walkers:
            force = _force(party, truth, self.misshapen)
            taps = truth if party.run is gold_run else party.run.step(force)
            party.differences = _compare(self.pool, golds, taps)
            if "subject" in party.roles:
                found = party.differences
                self.misshapen |= {n for n in found if taps[n].shape != truth[n].shape}
                self.unmatched |= _unmatched(taps, truth, party.subject)
                _bound_probabilities(party, taps, golds)
                shown = shown or taps
            if party.testifies:
                tally = self.tallies[party.subject.name]
                tally.unmatched |= _unmatched(taps, truth, party.subject)
                _note_gap(tally, taps, shown, chunk)
        limits = LIMITS[self.lane]
        self.rows += _judge(self.lane, self.scenario, chunk.step, self.walkers, limits)
        _judge_witnesses(self.lane, self.walkers, self.tallies)

    def record(self) -> PassRecord:
        """Return what has been found."""
        witnesses = [
            _witness_row(p, self.lane, self.scenario, self.tallies[p.subject.name])
            for p in self.walkers
            if p.testifies
        ]
        return PassRecord(self.rows, witnesses, self.unmatched)


def _force(party: Party, truth: Arrays, misshapen: set[str]) -> Arrays | None:
    """Return the gold's values for an isolated party, less those of another shape."""
    if party.mode != "isolated":
        return None
    return {name: value for name, value in truth.items() if name not in misshapen}


@dataclass(frozen=True)
class Chunk:
    """The columns of one call: all of them, or one piece of a decode run.

    Attributes:
        step: its number.
        valid: its columns' validity [B, t].
        mask: what its queries see of the C columns fed so far [B, t, C].
        held: validity of those columns [B, C].
    """

    step: int
    valid: np.ndarray
    mask: np.ndarray
    held: np.ndarray

    def rows_of(self, name: str) -> np.ndarray:
        """Return which of a tap's rows are real tokens: a cache also holds earlier chunks'."""
        return self.held if split_name(name)[0] in CACHE_TAPS else self.valid


def _chunk_views(inputs: Inputs, chunks: Sequence[int] | None) -> Iterator[Chunk]:
    stop = 0
    for step, size in enumerate(chunks or [inputs.tokens.shape[1]]):
        start, stop = stop, stop + size
        mask = inputs.mask[:, start:stop, :stop]
        yield Chunk(step, inputs.valid[:, start:stop], mask, inputs.valid[:, :stop])


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
    """Require of the probabilities no more change than the change in scores accounts for."""
    for name, result in party.differences.items():
        scores = name.replace("attn_probs", "attn_scores")
        if name == scores or scores not in taps or result.problems or party.mode == "isolated":
            continue
        if taps[scores].shape != golds[scores].array.shape:
            continue
        moved, allowed = total_variation(taps[scores], golds[scores], taps[name], golds[name])
        result.facts["total_variation"] = moved
        if moved > allowed:
            result.problems.append(
                f"total variation {moved:.3g}, but the scores explain {allowed:.3g} at most: "
                "mask or softmax differs"
            )


def _floors(
    walkers: Sequence[Party], role: str, judged: Party, name: str, minimum: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the floors of `judged` on one tap, from the parties of `role` other than itself."""
    like = judged.differences[name]
    honest = [
        p.differences[name]
        for p in walkers
        if role in p.roles and p.mode == judged.mode and p is not judged and name in p.differences
    ]
    honest = [d for d in honest if d.relative.shape == like.relative.shape]
    relative = noise_floor([d.relative for d in honest], like.live, minimum)
    return relative, noise_floor([d.peak for d in honest], like.live, minimum)


def _judge(
    lane: str, scenario: str, step: int, walkers: Sequence[Party], limits: Limits
) -> list[TapRow]:
    rows = []
    minimum = limits.floor * UNIT_ROUNDOFF[lane]
    for party in walkers:
        if not party.roles & {"subject", "production"}:
            continue
        for name, found in party.differences.items():
            floor, peak_floor = _floors(walkers, "variant", party, name, minimum)
            rho = np.where(found.live, found.relative / floor, 0.0)
            if name == "logits":
                _explain_flips(found, walkers, party.mode, limits)
            at = np.unravel_index(int(np.argmax(rho)), rho.shape)
            rows.append(
                TapRow(
                    tap=name,
                    lane=lane,
                    scenario=scenario,
                    mode="production" if "production" in party.roles else party.mode,
                    step=step,
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
            )
    return rows


def _explain_flips(found: Difference, walkers: Sequence[Party], mode: str, limits: Limits) -> None:
    """A changed top-1 is explained where the gold's margin is within the range noise can move."""
    ranges = [
        p.differences["logits"].facts["range"]
        for p in walkers
        if "variant" in p.roles and p.mode == mode and "range" in p.differences["logits"].facts
    ]
    allowed = limits.rho(mode) * max(ranges, default=0.0)
    found.facts["explained_margin"] = allowed
    if found.facts.get("top1_flips") and found.facts["flip_margin"] > allowed:
        found.problems.append(
            f"{found.facts['top1_flips']:.0f} top-1 predictions differ where the reference's "
            f"margin is {found.facts['flip_margin']:.3g}; rounding explains {allowed:.3g}"
        )


def _judge_witnesses(lane: str, walkers: Sequence[Party], tallies: Mapping[str, Tally]) -> None:
    for party in walkers:
        if not party.testifies:
            continue
        inner = getattr(party.subject, "internal_dtype", lane)
        effective = max(lane, inner, key=lambda dtype: UNIT_ROUNDOFF[dtype])
        role = "variant" if effective == lane else "interior"
        tally = tallies[party.subject.name]
        minimum = LIMITS[effective].floor * UNIT_ROUNDOFF[effective]
        for name, found in party.differences.items():
            floor, _ = _floors(walkers, role, party, name, minimum)
            rho = float(np.where(found.live, found.relative / floor, 0.0).max())
            tally.compared.add(name)
            tally.problems += [f"{name}: {problem}" for problem in found.problems]
            if AXES[split_name(name)[0]] != "R":
                tally.error = max(tally.error, float(found.relative.max()))
            if rho > tally.rho or not tally.worst_tap:
                tally.worst_tap, tally.rho = name, rho


def _note_gap(tally: Tally, taps: Arrays, subject: Arrays, chunk: Chunk) -> None:
    """Measure witness against subject where every difference ends up: residual and logits."""
    for name, value in taps.items():
        ends_a_stage = split_name(name)[0] in ("embed", "layers.output", "logits")
        if ends_a_stage and name in subject and subject[name].shape == value.shape:
            gap = difference(name, subject[name], value, chunk.valid, chunk.mask).relative.max()
            tally.subject_gap = max(tally.subject_gap, float(gap))


def _witness_row(party: Party, lane: str, scenario: str, tally: Tally) -> WitnessRow:
    return WitnessRow(
        witness=party.subject.name,
        lane=lane,
        scenario=scenario,
        mode=party.mode,
        compared=len(tally.compared),
        absent=tuple(sorted(party.subject.absent)),
        unmatched=tuple(sorted(tally.unmatched)),
        worst_tap=tally.worst_tap,
        rho=tally.rho,
        limit=LIMITS[lane].witness,
        error=tally.error,
        subject_gap=tally.subject_gap,
        problems=tuple(tally.problems[:8]),
    )
