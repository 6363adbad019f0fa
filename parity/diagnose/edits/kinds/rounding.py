"""A value is rounded through a dtype of fewer bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.operations import Rounded
from parity.diagnose.rounding import narrower
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program, operand_names

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "rounding"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose every dtype narrower than the run's, for every value."""
    floating = [name for name, value in values.items() if _rounds(name, value)]
    twins = [
        (a.name, b.name)
        for a, b in combinations(program, 2)
        if a.inputs == b.inputs and type(a.fn) is type(b.fn) and {a.name, b.name} <= {*floating}
    ]
    made = tuple(step.name for step in program if step.name in floating)
    everything = tuple(dict.fromkeys((*_read(program, floating), *made)))
    for dtype in narrower(trial.lane):
        if dtype == "tf32":  # tensor cores round operands of products, which has a cause of its own
            continue
        for name in floating:
            yield _edit(trial, (name,), f"{name} is", dtype)
        for one, two in twins:
            yield _edit(trial, (one, two), f"{one} and {two} are", dtype)
        if len(made) > 1:
            yield _edit(trial, made, "every step is", dtype)
            yield _edit(trial, everything, "every operand and every step are", dtype)


def _rounds(name: str, value: Value) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or name == "positions")


def _read(program: Program, floating: list[str]) -> list[str]:
    return [name for name in operand_names(program) if name in floating]


def _edit(trial: OperatorTrial, names: tuple[str, ...], said: str, dtype: str) -> Edit:
    return Edit(
        trial.tap,
        ID,
        names[0],
        names[1:],
        Rounded(dtype),
        f"{said} rounded through {dtype}",
        cost=1.1 if len(names) == 1 else 1.2,
    )


def rewrite(program: Program, edit: Edit) -> Program:
    """Round after the step."""
    assert isinstance(edit.value, Rounded)
    for name in (edit.step, *edit.operands):
        program = with_step_after(program, name, edit.value)
    return program
