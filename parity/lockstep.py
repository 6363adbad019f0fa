"""Several implementations walked through one forward pass together, a stage at a time.

Only one stage's arrays are alive at once, so memory does not grow with depth: a stage is
computed by all, compared with the gold, judged and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.attention_maps import total_variation
from parity.compare import against, difference
from parity.gold import Difference, Gold
from parity.result import TapRow, WitnessRow
from parity.scenarios import Inputs
from parity.subjects.base import Run, Subject
from parity.taps import AXES, CACHE_TAPS, split_name
from parity.tolerance import LIMITS, UNIT_ROUNDOFF, Limits, noise_floor

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[], None]


@dataclass
class Party:
    """One implementation on its way through a pass.

    Attributes:
        subject: the implementation.
        roles: `subject` is judged; so is `production`, the same model without taps; a `variant`
            is an honest run whose error is the noise; a `witness` must agree with the gold;
            `interior` is the noise of what computes in float32 whatever it is given.
        mode: `free`, `isolated` or `decode`.
    """

    subject: Subject
    roles: frozenset[str]
    mode: str
    run: Run
    differences: dict[str, Difference] = field(default_factory=dict)


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
    parties: Sequence[tuple[Subject, frozenset[str]]],
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
        parties: subjects with their roles, see `Party`.
        modes: `free`, `isolated`; or `decode` alone, with `chunks`.
        layers: L.
        chunks: columns per call of a decode run.
        progress: called after every stage.
    """
    gold_run = _start(gold, inputs, chunks)
    walkers = [
        Party(
            subject, roles, mode, gold_run if subject is gold else _start(subject, inputs, chunks)
        )
        for mode in modes
        for subject, roles in parties
        if _takes_part(subject, roles, mode)
    ]
    tallies: dict[str, Tally] = {p.subject.name: Tally() for p in walkers if "witness" in p.roles}
    record = PassRecord()
    misshapen: set[str] = set()
    for step, valid, mask, held in _chunk_views(inputs, chunks):
        for _ in range(layers + 2):
            truth = gold_run.step()
            golds = {
                name: Gold(name, value, _rows_of(name, valid, held), mask)
                for name, value in truth.items()
            }
            arrays = {}
            for party in walkers:
                force = _force(party, truth, misshapen)
                taps = truth if party.run is gold_run else party.run.step(force)
                party.differences = {
                    name: against(golds[name], value)
                    for name, value in taps.items()
                    if name in golds
                }
                if "subject" in party.roles:
                    misshapen |= {n for n in party.differences if taps[n].shape != truth[n].shape}
                    record.unmatched |= _unmatched(taps, truth, party.subject)
                    if party.mode != "isolated":
                        arrays = taps
                    _bound_probabilities(party, taps, golds)
                if "witness" in party.roles and party.mode != "isolated":
                    tally = tallies[party.subject.name]
                    tally.unmatched |= _unmatched(taps, truth, party.subject)
                    _note_gap(tally, taps, arrays, valid, mask)
            record.rows += _judge(lane, inputs.name, step, walkers, LIMITS[lane])
            _judge_witnesses(lane, walkers, tallies, LIMITS[lane])
            progress()
    mode = "decode" if "decode" in modes else "free"
    for party in walkers:
        if "witness" in party.roles and party.mode != "isolated":
            tally = tallies[party.subject.name]
            record.witnesses.append(
                _witness_row(party.subject, lane, inputs.name, mode, tally, LIMITS[lane])
            )
    return record


def _takes_part(subject: Subject, roles: frozenset[str], mode: str) -> bool:
    if mode == "isolated":
        return bool(roles & {"subject", "variant"}) and subject.can_force
    return mode == "free" or "production" not in roles


def _start(subject: Subject, inputs: Inputs, chunks: Sequence[int] | None) -> Run:
    if chunks is None:
        return subject.start(inputs)
    return subject.start_decode(inputs, chunks)  # type: ignore[attr-defined]


def _force(party: Party, truth: Arrays, misshapen: set[str]) -> Arrays | None:
    """Return the gold's values for an isolated party, less those of another shape."""
    if party.mode != "isolated":
        return None
    return {name: value for name, value in truth.items() if name not in misshapen}


def _chunk_views(
    inputs: Inputs, chunks: Sequence[int] | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield each chunk's number, valid [B, t], mask [B, t, C], and valid [B, C] of all fed."""
    if chunks is None:
        yield 0, inputs.valid, inputs.mask, inputs.valid
        return
    stop = 0
    for step, size in enumerate(chunks):
        start, stop = stop, stop + size
        held = inputs.valid[:, :stop]
        yield step, inputs.valid[:, start:stop], inputs.mask[:, start:stop, :stop], held


def _rows_of(name: str, valid: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return which of a tap's rows are real tokens: a cache also holds those of earlier chunks."""
    return held if split_name(name)[0] in CACHE_TAPS else valid


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


def _judge_witnesses(
    lane: str, walkers: Sequence[Party], tallies: Mapping[str, Tally], limits: Limits
) -> None:
    for party in walkers:
        if "witness" not in party.roles or party.mode == "isolated":
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


def _note_gap(
    tally: Tally, taps: Arrays, subject: Arrays, valid: np.ndarray, mask: np.ndarray
) -> None:
    """Measure witness against subject where every difference ends up: residual and logits."""
    for name, value in taps.items():
        ends_a_stage = split_name(name)[0] in ("embed", "layers.output", "logits")
        if ends_a_stage and name in subject and subject[name].shape == value.shape:
            gap = difference(name, subject[name], value, valid, mask).relative.max()
            tally.subject_gap = max(tally.subject_gap, float(gap))


def _witness_row(
    witness: Subject, lane: str, scenario: str, mode: str, tally: Tally, limits: Limits
) -> WitnessRow:
    return WitnessRow(
        witness=witness.name,
        lane=lane,
        scenario=scenario,
        mode=mode,
        compared=len(tally.compared),
        absent=tuple(sorted(witness.absent)),
        unmatched=tuple(sorted(tally.unmatched)),
        worst_tap=tally.worst_tap,
        rho=tally.rho,
        limit=limits.witness,
        error=tally.error,
        subject_gap=tally.subject_gap,
        problems=tuple(tally.problems[:8]),
    )
