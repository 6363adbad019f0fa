"""An edit of an operator's program, where in a model it holds, and what edits explain.

Shapes: B batch, T queries, N heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.evidence import HELD_TAPS
from parity.subjects.torch_reference.operations import (
    Arithmetic,
    Half,
    JoinHalves,
    Operation,
    Unary,
)
from parity.subjects.torch_reference.program import Program, Step, redirect
from parity.taps import AXES

# The axes of a tap along which a fault may hold in part, as sentences have them.
AXIS_WORDS = {"B": "row", "T": "column", "N": "head", "K": "kv head"}

# Calls through a cache in which alone a fault may hold, as sentences have them.
LATER, SINGLE, SEVERAL = "later", "single", "several"
CALL_WORDS = {
    LATER: "in calls after the first alone",
    SINGLE: "in calls of one column alone",
    SEVERAL: "in calls of several columns after the first alone",
}

# Operands that are counts, which no fault makes a broken number of.
WHOLE = ("head_dim",)
# In the place of a number that is to be solved for.
SOLVED = "solved"
# In the place of a step's name: all that split features in halves or join them.
ALL_HALVES = "halves"


@dataclass(frozen=True)
class Edit:
    """One change of one tap's program.

    Attributes:
        tap: short name of the tap.
        kind: id of its kind, see `parity.diagnose.edits.kinds`.
        step: name of the step or operand that it is at.
        operands: names of others that take part.
        value: what the kind puts there: a number, `SOLVED` until it is known, or an operation.
        said: the edit in a sentence's words.
        template: the same with `{}` for its number; empty if it has none to solve for.
        starts: where the search for its number may begin; first of all, where nothing is changed.
        cost: the larger, the less simple.
    """

    tap: str
    kind: str
    step: str
    operands: tuple[str, ...] = ()
    value: float | str | Operation | None = None
    said: str = ""
    template: str = ""
    starts: tuple[float, ...] = ()
    cost: float = 1.0

    def changes_nothing(self, number: float) -> bool:
        """Return whether a number, put in for what is solved for, leaves all as it was."""
        return bool(self.starts) and number == self.starts[0]

    def within(self, program: Program) -> bool:
        """Return whether a program has the step or operand that the edit is at."""
        if self.step == ALL_HALVES:
            return any(isinstance(step.fn, Half | JoinHalves) for step in program)
        names = {name.rstrip("'") for step in program for name in (step.name, *step.inputs)}
        return self.step.rstrip("'") in names


@dataclass(frozen=True)
class Number:
    """An operation without inputs: a constant of a program."""

    value: float

    @property
    def said(self) -> str:
        return f"{self.value:.6g}"

    def __call__(self, arithmetic: Arithmetic) -> Any:
        return self.value


@dataclass(frozen=True)
class Scope:
    """Where in a tap edits hold; in which layers, `Mutation` says.

    Attributes:
        axes: (letter of an axis, indices along it), see `AXIS_WORDS`; none is everywhere.
        calls: in which calls through a cache, one of `CALL_WORDS`; empty for all.
    """

    axes: tuple[tuple[str, frozenset[int]], ...] = ()
    calls: str = ""

    @property
    def said(self) -> str:
        """The scope in a sentence's words; empty for everywhere."""
        parts = [f"{AXIS_WORDS[letter]} {in_words(at)}" for letter, at in self.axes]
        where = f"in {', '.join(parts)} alone" if parts else ""
        return f"{where} {CALL_WORDS.get(self.calls, '')}".strip()

    def in_call(self, number: int, columns: int) -> bool:
        """Return whether it reaches into a call of a number, of so many columns."""
        reached = {LATER: number > 0, SINGLE: columns == 1, SEVERAL: number > 0 and columns > 1}
        return reached.get(self.calls, True)

    def cells(self, tap: str, value: Tensor) -> Tensor | None:
        """Return which cells of a tap's value it holds for, broadcastable to it; None for all."""
        if not self.axes:
            return None
        letters = axes_of(tap)
        found = torch.ones((1,) * value.ndim, dtype=torch.bool)
        for letter, at in self.axes:
            axis = letters.index(letter)
            here = torch.zeros(value.shape[axis], dtype=torch.bool)
            here[[i for i in at if i < value.shape[axis]]] = True
            shape = [1] * value.ndim
            shape[axis] = -1
            found = found & here.view(shape)
        return found


EVERYWHERE = Scope()


def axes_of(tap: str) -> str:
    """Return the letters of a tap's axes, by its short name."""
    return AXES.get(HELD_TAPS.get(tap, tap)) or AXES[f"layers.{tap}"]


def in_words(numbers: Iterable[int]) -> str:
    """Say which numbers: `1 to 4, 7`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)


@dataclass(frozen=True)
class Explanation:
    """Edits of one tap's program that make of a subject's inputs what it shows.

    Attributes:
        edits: in the order in which they are made.
        scope: where they hold.
        left: what they leave of the tap, relative.
    """

    edits: tuple[Edit, ...]
    scope: Scope
    left: float

    @property
    def cost(self) -> float:
        """How far from simple they are."""
        return sum(edit.cost for edit in self.edits) + 0.5 * (
            len(self.scope.axes) + bool(self.scope.calls)
        )

    @property
    def said(self) -> str:
        """All of it in a sentence's words."""
        said = " and ".join(edit.said for edit in self.edits)
        return f"{said} {self.scope.said}".rstrip()


# Rewriting of programs.


def step_of(program: Program, name: str) -> Step | None:
    """Return the step of a name; None for an operand."""
    return next((step for step in program if step.name == name), None)


def with_step(program: Program, name: str, **fields: object) -> Program:
    """Return a program whose step of a name has other fields."""
    return tuple(
        replace(step, **fields) if step.name == name else step  # type: ignore[arg-type]
        for step in program
    )


def without_step(program: Program, name: str, kept: str) -> Program:
    """Return a program without a step, whose readers read `kept` in its place.

    The last step gives its name's value by handing `kept` on.
    """
    if program[-1].name == name:
        return with_step(program, name, inputs=(kept,), fn=Unary("identity"))
    return tuple(redirect(step, {name: kept}) for step in program if step.name != name)


def with_step_after(program: Program, name: str, fn: Operation, *inputs: str) -> Program:
    """Return a program in which one more step works on a step's or an operand's value.

    Args:
        program: as it was.
        name: of the step or operand; all that read it read the new step.
        fn: what it does.
        inputs: what it reads beside.
    """
    made = name
    while any(made in (step.name, *step.inputs) for step in program):
        made += "'"
    new = Step(made, (name, *inputs), fn)
    at = next((i + 1 for i, step in enumerate(program) if step.name == name), 0)
    readers = tuple(redirect(step, {name: made}) for step in program[at:])
    return (*program[:at], new, *readers)
