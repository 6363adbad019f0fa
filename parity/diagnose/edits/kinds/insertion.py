"""A value passes through a function that is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.operations import OVER_FEATURES, OverFeatures
from parity.subjects.torch_reference.operations import UNARY, Operation, Unary, Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "insertion"
FUNCTIONS: tuple[Operation, ...] = (
    *(Unary(name) for name in UNARY if name not in ("identity", "zero")),
    *(OverFeatures(name) for name in OVER_FEATURES),
)


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose every function, of every value."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            for fn in FUNCTIONS:
                said = f"{name} passes through {fn.said}"
                yield Edit(trial.tap, ID, name, (), fn, said, cost=1.4)


def rewrite(program: Program, edit: Edit) -> Program:
    """Put the function after the step."""
    assert isinstance(edit.value, Unary | OverFeatures)
    return with_step_after(program, edit.step, edit.value)
