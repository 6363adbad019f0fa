"""A step does another operation of its sort: another function, sign, axis, layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import ALL_HALVES, Edit, step_of, with_step
from parity.diagnose.edits.operations import (
    LinearTransposed,
    MaskedWithout,
    MultipliedTransposed,
    OneBased,
    ShowHidden,
    SoftmaxWithSink,
    WhereNot,
)
from parity.subjects.torch_reference.operations import (
    BINARY,
    REDUCTIONS,
    UNARY,
    Binary,
    Half,
    Hide,
    JoinHalves,
    JoinHeads,
    Linear,
    MatMul,
    Operation,
    Pairs,
    Permute,
    Reduce,
    Show,
    Softmax,
    SplitHeads,
    Unary,
    Value,
    Where,
)
from parity.subjects.torch_reference.program import Program, Step

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "operation"
# Operations that may stand for each other: of numbers, comparing them, of truth values.
SORTS = ((">", ">=", "<", "<=", "==", "!="), ("and", "or", "and not", "exclusive or"))


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose the other operations of every step."""
    for step in program:
        for fn in others(step, values):
            said = f"{step.name} is {fn.said} in place of {step.fn.said}"
            yield Edit(trial.tap, ID, step.name, (), fn, said)
    if any(isinstance(step.fn, Half) for step in program):
        said = "features 2i and 2i + 1 are a pair in place of i and i + H/2"
        yield Edit(trial.tap, ID, ALL_HALVES, (), None, said)


def others(step: Step, values: Mapping[str, Value]) -> Iterator[Operation]:
    """Yield operations that may stand in a step's place."""
    fn = step.fn
    if isinstance(fn, Unary):
        yield from (Unary(name) for name in UNARY if name != fn.name)
    elif isinstance(fn, Binary):
        numeric = tuple(name for name in BINARY if not any(name in sort for sort in SORTS))
        (sort,) = (sort for sort in (*SORTS, numeric) if fn.name in sort)
        yield from (Binary(name) for name in sort if name != fn.name)
    elif isinstance(fn, Reduce):
        read = values[step.inputs[0]]
        assert isinstance(read, Tensor)
        yield from (
            Reduce(name, axis)
            for name in REDUCTIONS
            for axis in range(-read.ndim, 0)
            if (name, axis) != (fn.name, fn.axis)
        )
        if fn.name in ("mean", "sum", "max", "min"):
            yield from (Reduce(fn.name, axes) for axes in _with_another(fn.axis, read.ndim))
    elif isinstance(fn, Softmax):
        yield from (Softmax(axis) for axis in (-2, -3, -4) if axis != fn.axis)
        yield from (Softmax(axes) for axes in _with_another(fn.axis, 4))
        yield SoftmaxWithSink()
    elif isinstance(fn, Half):
        yield from (replace(fn, which=1 - fn.which), replace(fn, paired=not fn.paired))
    elif isinstance(fn, JoinHalves):
        yield replace(fn, paired=not fn.paired)
    elif isinstance(fn, SplitHeads | JoinHeads):
        yield replace(fn, transposed=not fn.transposed)
    elif isinstance(fn, Linear):
        yield LinearTransposed()
    elif isinstance(fn, MatMul):
        yield from (MultipliedTransposed("first"), MultipliedTransposed("second"))
    elif isinstance(fn, Permute):
        yield from (Permute(axes) for axes in permutations(fn.axes) if axes != fn.axes)
    elif isinstance(fn, Hide):
        yield from (Hide(fill) for fill in (0.0, -1.0, -1e4, -1e9))
        yield from (MaskedWithout(), MaskedWithout(finite=True))
    elif isinstance(fn, Show):
        yield ShowHidden()
    elif isinstance(fn, Where):
        yield WhereNot()
    elif isinstance(fn, Pairs):
        yield OneBased()


def _with_another(axis: int | tuple[int, ...], ndim: int) -> Iterator[tuple[int, ...]]:
    """Yield an axis with one more, and with all."""
    if isinstance(axis, int):
        others = [other for other in range(-ndim, 0) if other != axis]
        yield from (tuple(sorted((axis, other))) for other in others)
        if len(others) > 1:
            yield tuple(range(-ndim, 0))


def rewrite(program: Program, edit: Edit) -> Program:
    """Put the other operation in the step's place."""
    if edit.step == ALL_HALVES:
        return tuple(
            replace(step, fn=replace(step.fn, paired=not step.fn.paired))
            if isinstance(step.fn, Half | JoinHalves)
            else step
            for step in program
        )
    if step_of(program, edit.step) is None:
        raise KeyError(edit.step)
    return with_step(program, edit.step, fn=edit.value)
