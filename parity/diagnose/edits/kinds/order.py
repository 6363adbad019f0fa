"""A step is left out, is done twice, or comes after its neighbour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, step_of, with_step_after, without_step
from parity.subjects.torch_reference.operations import Unary, Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "order"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose all three for every step that hands on values of the shape that it reads."""
    for number, step in enumerate(program):
        if step.fn == Unary("identity"):  # whether it is done or not is one program
            continue
        made = values[step.name]
        for read in step.inputs:
            if _replaces(values[read], made):
                said = f"{step.name} is left out"
                if sum(_replaces(values[name], made) for name in step.inputs) > 1:
                    said += f", {read} handed on"
                yield Edit(trial.tap, ID, step.name, ("left out", read), None, said, cost=0.9)
        if not step.inputs or not _alike(values[step.inputs[0]], made):
            continue
        yield Edit(
            trial.tap, ID, step.name, ("twice",), None, f"{step.name} is done twice", cost=1.2
        )
        following = program[number + 1 : number + 2]
        if following and following[0].inputs[:1] == (step.name,):
            after = following[0].name
            if _alike(values[after], made):
                said = f"{step.name} comes after {after}"
                yield Edit(trial.tap, ID, step.name, ("after", after), None, said, cost=1.2)


def _alike(one: Value, other: Value) -> bool:
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.shape == other.shape
        and one.is_floating_point() == other.is_floating_point()
    )


def _replaces(one: Value, other: Value) -> bool:
    """Return whether a value can stand where another does, with more cells than that or fewer."""
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.ndim == other.ndim
        and one.is_floating_point() == other.is_floating_point()
        and all(a == b or 1 in (a, b) for a, b in zip(one.shape, other.shape, strict=True))
    )


def rewrite(program: Program, edit: Edit) -> Program:
    """Rewrite the step's surroundings."""
    step = step_of(program, edit.step)
    if step is None:
        raise KeyError(edit.step)
    how = edit.operands[0]
    if how == "left out":
        return without_step(program, edit.step, edit.operands[1])
    if how == "twice":
        return with_step_after(program, edit.step, step.fn, *step.inputs[1:])
    after = step_of(program, edit.operands[1])
    if after is None or after.inputs[0] != step.name:
        raise KeyError(edit.operands[1])
    first = replace(after, name=step.name, inputs=(step.inputs[0], *after.inputs[1:]))
    second = replace(step, name=after.name, inputs=(step.name, *step.inputs[1:]))
    moved = {step.name: first, after.name: second}
    return tuple(moved.get(one.name, one) for one in program)
