"""A step reads another value: of another tap, layer, weight, or from before or after a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import WHOLE, Edit, step_of
from parity.subjects.torch_reference.operations import Binary, Value
from parity.subjects.torch_reference.program import Program, bind, operand_names, redirect
from parity.taps import LAYER_MODULES

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "operand"
EXCHANGED, IN_STEP = "exchanged", "exchanged in it"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose every value of a fitting shape in the place of every input."""
    elsewhere = {
        name: value.shape
        for name, value in trial.seen.items()
        if name not in values and isinstance(value, Tensor)
    }
    weights = list(other_weights(trial)) if "weight" in values else []
    yield from _exchanged(trial, program, values)
    yield from _exchanged_in_steps(trial, program)
    for number, step in enumerate(program):
        earlier = {name: _shape(values[name]) for name in _made_before(program, number, values)}
        for place, read in enumerate(step.inputs):
            shape, floating = _shape(values[read]), _floating(values[read])
            if read in WHOLE:  # a count is no value, and memory follows it
                continue
            if read == "weight":
                yield from (_edit(trial, step.name, place, read, other) for other in weights)
                continue
            for other, its in (elsewhere | earlier).items():
                value = values.get(other, trial.seen.get(other))
                if other != read and _fits(its, shape) and _floating(value) == floating:
                    yield _edit(trial, step.name, place, read, other)


def _exchanged(
    trial: OperatorTrial, program: Program, values: Mapping[str, Value]
) -> Iterator[Edit]:
    """Yield exchanges of two operands of one shape, wherever they are read."""
    for one, other in combinations(operand_names(program), 2):
        shape = _shape(values[one])
        if shape is not None and len(shape) and shape == _shape(values[other]):
            said = f"{one} and {other} are exchanged"
            yield Edit(trial.tap, ID, one, (EXCHANGED, other), None, said)


def _exchanged_in_steps(trial: OperatorTrial, program: Program) -> Iterator[Edit]:
    """Yield exchanges of two arguments of one step; those of two are other operations."""
    for step in program:
        if isinstance(step.fn, Binary) or "weight" in step.inputs:
            continue
        for one, other in combinations(dict.fromkeys(step.inputs), 2):
            said = f"{one} and {other} are exchanged in {step.name}"
            yield Edit(trial.tap, ID, step.name, (IN_STEP, one, other), None, said, cost=1.1)


def other_weights(trial: OperatorTrial) -> Iterator[str]:
    """Yield the names of other weights of the shape of the operator's own."""
    if trial.layer is None:
        return
    own = trial.operands["weight"]
    assert isinstance(own, Tensor)
    layers = trial.reference.config.num_hidden_layers
    for tap in LAYER_MODULES:
        for layer in range(layers):
            if (tap, layer) == (trial.tap, trial.layer):
                continue
            name = f"weight of {tap}" + ("" if layer == trial.layer else f" in layer {layer}")
            other = trial.operands[name]
            if isinstance(other, Tensor) and other.shape == own.shape:
                yield name


def _fits(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    """Return whether a value of one shape can be read where one of the other is."""
    if one is None or other is None:
        return one == other
    return len(one) == len(other) and all(a in (b, 1) for a, b in zip(one, other, strict=True))


def _edit(trial: OperatorTrial, step: str, place: int, read: str, other: str) -> Edit:
    said = f"{step} reads {other} in place of {read}"
    return Edit(trial.tap, ID, step, (str(place), other), None, said)


def _made_before(program: Program, number: int, values: Mapping[str, Value]) -> list[str]:
    later = {step.name for step in program[number:]}
    return [name for name in values if name not in later]


def _shape(value: Value) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _floating(value: Value | None) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def rewrite(program: Program, edit: Edit) -> Program:
    """Let the step read the other value; or all steps each of two for the other."""
    if edit.operands[0] == EXCHANGED:
        other = edit.operands[1]
        return bind(program, **{edit.step: other, other: edit.step})
    if step_of(program, edit.step) is None:
        raise KeyError(edit.step)
    if edit.operands[0] == IN_STEP:
        one, other = edit.operands[1:]
        return tuple(
            redirect(step, {one: other, other: one}) if step.name == edit.step else step
            for step in program
        )
    place, other = int(edit.operands[0]), edit.operands[1]
    return tuple(
        replace(step, inputs=tuple(other if i == place else n for i, n in enumerate(step.inputs)))
        if step.name == edit.step
        else step
        for step in program
    )
