"""Which edits of one operator explain what it made: the simplest sets that leave nothing.

All single edits are tried on few rows; of those that come closest, pairs and then triples are
made. Numbers are solved for on half of the tokens and judged on all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.edits.edit import (
    AXIS_WORDS,
    EVERYWHERE,
    SOLVED,
    Edit,
    Explanation,
    Scope,
    axes_of,
)
from parity.diagnose.edits.kinds import apply_edits, proposals
from parity.diagnose.edits.numbers import solve_numbers
from parity.diagnose.edits.trial import UNFIT, OperatorTrial
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program

# Sets that are given one more edit, and edits in a set.
BEAM = 12
MOST_EDITS = 3
# Sets that are handed on when several leave nothing.
MOST_EXPLANATIONS = 8
# A cell differs if it is this share of the largest off.
DIFFERS = 1e-9


@dataclass(frozen=True)
class Candidate:
    """A set of edits with what it leaves."""

    edits: tuple[Edit, ...]
    left: float
    cost: float

    @property
    def rank(self) -> tuple[int, float]:
        """What is left, in decades, then how simple it is."""
        return round(max(np.log10(max(self.left, 1e-300)), -14)), self.cost


def explanations(
    trial: OperatorTrial, kinds: Sequence[str], enough: float, seconds: float = 20.0
) -> list[Explanation]:
    """Return the sets of edits that leave at most `enough` of a tap, the simplest first.

    Args:
        trial: the operator.
        kinds: ids of the kinds of edits that may be made.
        enough: relative, in the root of squares.
        seconds: no larger sets are tried after this time.
    """
    deadline = time.monotonic() + seconds
    for scope in _scopes(trial):
        found = _search(trial, kinds, scope, enough, deadline)
        if found:
            return found
    return []


def _search(
    trial: OperatorTrial, kinds: Sequence[str], scope: Scope, enough: float, deadline: float
) -> list[Explanation]:
    few = trial.few
    start = Candidate((), few.left((), scope), 0.0)
    beam, seen = [start], {round(start.left, 15)}
    for _ in range(MOST_EDITS):
        tried = []
        for candidate in beam:
            for edit in _proposed(few, kinds, candidate.edits):
                if time.monotonic() > deadline:
                    break
                one = _tried(few, scope, (*candidate.edits, edit), enough)
                if one is not None:
                    tried.append(one)
        tried.sort(key=lambda one: one.rank)
        good = [one for one in tried if one.left <= enough]
        if good:
            kept = [_on_all_rows(trial, scope, one) for one in good[:MOST_EXPLANATIONS]]
            return [one for one in kept if one.left <= enough]
        if time.monotonic() > deadline:
            break
        beam = []
        for one in tried:
            # Sets that make the same are one.
            if one.left < 0.999 * start.left and round(one.left, 12) not in seen:
                seen.add(round(one.left, 12))
                beam.append(one)
            if len(beam) == BEAM:
                break
    return []


def _proposed(trial: OperatorTrial, kinds: Sequence[str], edits: Sequence[Edit]) -> Iterator[Edit]:
    try:
        program = apply_edits(trial.program, edits)
        values = _values(trial, program)
    except UNFIT:
        return
    yield from proposals(kinds, trial, program, values)


def _values(trial: OperatorTrial, program: Program) -> dict[str, Value]:
    """Return the values of a program's steps, and of the operands that they read."""
    values: dict[str, Value] = {}
    with torch.no_grad():
        for step in program:
            for name in step.inputs:
                if name not in values:
                    values[name] = trial.operands[name]
            made = step.fn(trial.reference, *(values[name] for name in step.inputs))
            values[step.name] = made
    return values


def _tried(
    trial: OperatorTrial, scope: Scope, edits: tuple[Edit, ...], enough: float
) -> Candidate | None:
    if edits[-1].value == SOLVED:
        return _solved(trial, scope, edits, enough)
    left = trial.left(edits, scope)
    return None if left >= 1e300 else Candidate(edits, left, sum(e.cost for e in edits))


def _solved(
    trial: OperatorTrial, scope: Scope, edits: tuple[Edit, ...], enough: float
) -> Candidate | None:
    """Solve for the numbers of all edits that have one."""
    half = trial.halves[0]
    free = [i for i, edit in enumerate(edits) if edit.template]

    def filled(numbers: Sequence[float]) -> tuple[Edit, ...]:
        values = dict(zip(free, numbers, strict=True))
        return tuple(
            replace(edit, value=values[i]) if i in values else edit for i, edit in enumerate(edits)
        )

    def residual(numbers: Sequence[float]) -> Tensor | None:
        try:
            return half.residual(half.value(filled(numbers), scope))
        except UNFIT:
            return None

    starts = [
        edit.starts if edit.value == SOLVED else (float(edit.value),)  # type: ignore[arg-type]
        for edit in (edits[i] for i in free)
    ]
    numbers = solve_numbers(residual, starts, enough)
    if numbers is None:
        return None
    done = tuple(
        replace(e, said=e.template.format(f"{e.value:.6g}")) if e.template else e
        for e in filled(numbers)
    )
    left = trial.left(done, scope)
    return None if left >= 1e300 else Candidate(done, left, sum(e.cost for e in done))


def _on_all_rows(trial: OperatorTrial, scope: Scope, one: Candidate) -> Explanation:
    return Explanation(one.edits, scope, trial.left(one.edits, scope))


def _scopes(trial: OperatorTrial) -> Iterator[Scope]:
    """Yield everywhere, then where alone the tap differs, if it is right elsewhere."""
    yield EVERYWHERE
    gap = trial.base - trial.target
    gap = torch.where(trial.compared & (trial.base != trial.target), gap, 0.0)
    gap = gap.nan_to_num(1e300, 1e300, 1e300).abs()
    size = torch.where(trial.compared, trial.target, 0.0).nan_to_num(0, 0, 0).abs().max()
    off = gap > DIFFERS * size
    letters, axes = axes_of(trial.tap), []
    live = trial.compared.expand_as(off)
    for axis, letter in enumerate(letters):
        if letter not in AXIS_WORDS:
            continue
        rest = [i for i in range(off.ndim) if i != axis]
        here, any_live = off.amax(rest), live.amax(rest)
        if not here.any() or bool((here | ~any_live).all()):
            continue
        axes.append((letter, frozenset(here.nonzero().flatten().tolist())))
    if axes:
        yield Scope(axes=tuple(axes))
