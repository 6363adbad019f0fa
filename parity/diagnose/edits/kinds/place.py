"""A value is that of another token, head or feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.operations import Moved, Regrouped, Reversed
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "place"
# Heads and their features; longer axes are not laid out in groups.
MOST_REGROUPED = 256
# The axis that has the heads of [B T N H], which may be moved by any number, if they are so few.
HEADS = 2
MOST_MOVED = 32


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose neighbours along every axis, with and without wrapping, and the reverse order."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            continue
        for axis in range(value.ndim):
            if value.shape[axis] < 2:
                continue
            for by, wrapped in _moves(value, axis):
                far = f"{abs(by)} " if abs(by) > 1 else ""
                side = "before" if by > 0 else "after"
                end = ", around the end" if wrapped else ""
                said = f"{name} is that of the index {far}{side} along axis {axis}{end}"
                fn = Moved(axis, by, wrapped)
                yield Edit(trial.tap, ID, name, (), fn, said, cost=1.3)
            said = f"{name} is reversed along axis {axis}"
            yield Edit(trial.tap, ID, name, (), Reversed(axis), said, cost=1.3)
            size = value.shape[axis]
            for groups in range(2, size // 2 + 1) if _is_of_heads(value, axis) else ():
                if size % groups == 0:
                    said = f"{name} is {groups} by {size // groups} transposed along axis {axis}"
                    yield Edit(trial.tap, ID, name, (), Regrouped(axis, groups), said, cost=1.3)


def _is_of_heads(value: Tensor, axis: int) -> bool:
    """Return whether an axis has heads or features, so few that they are laid out in groups."""
    return (axis >= HEADS or value.ndim == 1) and value.shape[axis] <= MOST_REGROUPED


def _moves(value: Tensor, axis: int) -> Iterator[tuple[int, bool]]:
    """Yield how far values may be moved, and whether around the end: heads by any number."""
    yield from ((by, True) for by in (1, -1))
    if value.is_floating_point():
        yield from ((by, False) for by in (1, -1))
    if axis == HEADS and value.ndim == 4 and value.shape[axis] <= MOST_MOVED:
        yield from ((by, True) for by in range(2, value.shape[axis] - 1))


def rewrite(program: Program, edit: Edit) -> Program:
    """Move after the step."""
    assert isinstance(edit.value, Moved | Regrouped | Reversed)
    return with_step_after(program, edit.step, edit.value)
