"""Which edits of one operator explain what it made: the simplest sets that leave nothing.

All single edits are tried on few rows; of those that come closest, pairs and then triples are
made. Numbers are solved for on half of the tokens and judged on all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.edits.edit import (
    AXIS_WORDS,
    EVERYWHERE,
    LATER,
    SEVERAL,
    SINGLE,
    SOLVED,
    Edit,
    Explanation,
    Scope,
    axes_of,
)
from parity.diagnose.edits.kinds import apply_edits, proposals
from parity.diagnose.edits.numbers import solve_numbers
from parity.diagnose.edits.trial import UNFIT, Known, OperatorTrial

# Sets that are given one more edit, and edits in a set.
BEAM = 12
MOST_EDITS = 3
# Sets that are handed on when several leave nothing.
MOST_EXPLANATIONS = 8
# Sets of one size that are held against other scenarios.
MOST_RIVALS = 64
# Dearer edits are far-fetched.
FAR_FETCHED = 1.25
# How much simpler an edit counts that has a name.
NAMED = 0.05
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
    trial: OperatorTrial,
    kinds: Sequence[str],
    enough: float,
    others: Sequence[OperatorTrial] = (),
    seconds: float = 60.0,
    is_named: Callable[[Edit], bool] = lambda edit: False,
) -> list[Explanation]:
    """Return the sets of edits that leave at most `enough` of a tap, the simplest first.

    Those that leave as little in other scenarios go before those that do not.

    Args:
        trial: the operator.
        kinds: ids of the kinds of edits that may be made.
        enough: relative, in the root of squares.
        others: the same operator in other scenarios and calls.
        seconds: of this thread's processor; no larger sets are tried after this time.
        is_named: whether an edit is one that people have a name for: of edits that come to the same
            it goes first.
    """
    deadline = time.thread_time() + seconds
    found: list[Explanation] = []
    for scope in scopes(trial):
        for good in _search(trial, kinds, scope, enough, deadline, is_named):
            # Rows and columns are read off one scenario.
            rivals = () if scope.axes else others
            judged = [(_failures(one, rivals, enough), one) for one in good]
            judged.sort(key=lambda item: (item[0], item[1].cost))
            found += [one for _, one in judged]
            if not judged[0][0]:
                return [one for failures, one in judged[:MOST_EXPLANATIONS] if not failures]
    return found[:MOST_EXPLANATIONS]


def _failures(found: Explanation, others: Sequence[OperatorTrial], enough: float) -> int:
    """Return in how many other trials an explanation leaves more than the noise."""
    return sum(one.left(found.edits, found.scope) > enough for one in others)


def _search(
    trial: OperatorTrial,
    kinds: Sequence[str],
    scope: Scope,
    enough: float,
    deadline: float,
    is_named: Callable[[Edit], bool],
) -> Iterator[list[Explanation]]:
    """Yield what single edits explain, if any do, then what pairs do, then triples."""
    few = trial.few
    start = Candidate((), few.left((), scope), 0.0)
    beam, seen = [start], {round(start.left, 12)}
    pool: list[Edit] = []
    sets: set[frozenset[Edit]] = set()
    for _ in range(MOST_EDITS):
        tried = []
        for candidate in beam:
            bases = Bases.of(few, candidate.edits)
            if bases is None:
                continue
            edits = pool or proposals(kinds, few, bases.few.program, bases.few.values)
            for edit in edits:
                if time.thread_time() > deadline:
                    break
                if not pool and is_named(edit):
                    edit = replace(edit, cost=edit.cost - NAMED)
                made = frozenset((*candidate.edits, edit))
                if made in sets:  # in another order
                    continue
                sets.add(made)
                one = _tried(few, scope, candidate.edits, edit, bases, enough)
                if one is not None:
                    tried.append(one)
        tried.sort(key=lambda one: one.rank)
        good = [one for one in tried if one.left <= enough]
        if good:
            kept = [_on_all_rows(trial, scope, one) for one in good[:MOST_RIVALS]]
            if explained := [one for one in kept if one.left <= enough]:
                yield explained
        if time.thread_time() > deadline:
            break
        pool = pool or _pool(tried, start.left)
        beam = []
        for one in sorted(tried, key=lambda one: one.left):
            # Sets that make the same are one.
            if one.left < 0.999 * start.left and round(one.left, 12) not in seen:
                seen.add(round(one.left, 12))
                beam.append(one)
            if len(beam) == BEAM:
                break


def _pool(tried: Sequence[Candidate], start: float) -> list[Edit]:
    """Return the single edits that are worth a place beside others: each that does its own thing.

    Far-fetched ones only if they bring the operator nearer by themselves.
    """
    distinct: dict[float, Edit] = {}
    for one in tried:
        (edit,) = one.edits
        if edit.cost > FAR_FETCHED and one.left >= start:
            continue
        edit = replace(edit, value=SOLVED) if edit.template else edit
        distinct.setdefault(round(one.left, 13), edit)
    return list(distinct.values())


@dataclass(frozen=True)
class Bases:
    """What a set's program makes of few rows, and of half of them."""

    few: Known
    half: Known

    @classmethod
    def of(cls, trial: OperatorTrial, edits: Sequence[Edit]) -> Bases | None:
        """Return those of a set of edits; None where they cannot be made."""
        half = trial.halves[0]
        try:
            program = apply_edits(trial.program, edits)
            return cls(*(Known(program, rows.values(program)) for rows in (trial, half)))
        except UNFIT:
            return None


def _tried(
    trial: OperatorTrial,
    scope: Scope,
    edits: tuple[Edit, ...],
    edit: Edit,
    bases: Bases,
    enough: float,
) -> Candidate | None:
    done = (*edits, edit)
    if edit.value == SOLVED:
        return solve_edits(trial, scope, done, enough, bases)
    left = trial.left((edit,), scope, bases.few)
    return None if left >= 1e300 else Candidate(done, left, sum(e.cost for e in done))


def solve_edits(
    trial: OperatorTrial,
    scope: Scope,
    edits: tuple[Edit, ...],
    enough: float,
    bases: Bases | None = None,
) -> Candidate | None:
    """Solve for the numbers of all edits that have one; None where they change nothing.

    Args:
        trial: the operator; numbers are solved for on half of its tokens.
        scope: where the edits hold.
        edits: in the order in which they are made.
        enough: relative; numbers are not solved for more closely.
        bases: what all edits but the last make; None if that is not known.
    """
    half = trial.halves[0]
    free = [i for i, edit in enumerate(edits) if edit.template]
    if not free:
        left = trial.left(edits, scope)
        return None if left >= 1e300 else Candidate(edits, left, sum(e.cost for e in edits))
    # Numbers of edits before the last are solved for once more, in the program without any.
    known = bases.half if bases and free == [len(edits) - 1] else None

    def filled(numbers: Sequence[float]) -> tuple[Edit, ...]:
        values = dict(zip(free, numbers, strict=True))
        return tuple(
            replace(edit, value=values[i]) if i in values else edit for i, edit in enumerate(edits)
        )

    def residual(numbers: Sequence[float]) -> Tensor | None:
        made = filled(numbers)
        try:
            return half.residual(half.value(made if known is None else made[-1:], scope, known))
        except UNFIT:
            return None

    starts = [
        edit.starts if edit.value == SOLVED else (float(edit.value),)  # type: ignore[arg-type]
        for edit in (edits[i] for i in free)
    ]
    numbers = solve_numbers(residual, starts, enough)
    if numbers is None or edits[free[-1]].changes_nothing(numbers[-1]):
        return None
    done = tuple(
        replace(e, said=e.template.format(f"{e.value:.6g}")) if e.template else e
        for e in filled(numbers)
    )
    left = trial.left(done, scope)
    return None if left >= 1e300 else Candidate(done, left, sum(e.cost for e in done))


def _on_all_rows(trial: OperatorTrial, scope: Scope, one: Candidate) -> Explanation:
    return Explanation(one.edits, scope, trial.left(one.edits, scope))


def scopes(trial: OperatorTrial) -> Iterator[Scope]:
    """Yield everywhere, then later calls alone, then where alone the tap differs."""
    yield EVERYWHERE
    number, columns = trial.call
    if number:
        some = (SINGLE, LATER) if columns == 1 else (LATER, SEVERAL)
        yield from (Scope(calls=calls) for calls in some)
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
