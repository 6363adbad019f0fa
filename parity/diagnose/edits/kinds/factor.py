"""A value is multiplied by a number, or a number is added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import SOLVED, Edit, Number, with_step_after
from parity.subjects.torch_reference.operations import Binary, Value
from parity.subjects.torch_reference.program import Program, Step

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "factor"
# Whole numbers that a fault may shift.
COUNTED = (
    *("positions", "q_position", "k_position", "distance", "window", "edge"),
    *("q_segment", "k_segment"),
    *("before", "count", "filled", "slot", "own", "capacity", "at", "row"),
)
# Each with its words and where the search for its number begins.
OPERATIONS = {
    "*": ("{} is multiplied by {{}}", (1.0, 2.0, 0.5, 10.0, 0.1, -1.0)),
    "+": ("{{}} is added to {}", (0.0, 1.0, -1.0, 2.0, -2.0)),
}


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose a factor on, and a number added to, every value; both to be solved for."""
    for name, value in values.items():
        if isinstance(value, Tensor) and (value.is_floating_point() or name in COUNTED):
            for sign, (said, starts) in OPERATIONS.items():
                template = said.format(name)
                # Of factors that come to the same, the result's own is the plainest.
                cost = 1.4 if name == program[-1].name else 1.5
                yield Edit(
                    trial.tap,
                    ID,
                    name,
                    (sign,),
                    SOLVED,
                    template=template,
                    starts=starts,
                    cost=cost,
                )


def rewrite(program: Program, edit: Edit) -> Program:
    """Put the operation after the step."""
    assert isinstance(edit.value, float)
    number = Step(f"{edit.step} {edit.operands[0]}", (), Number(edit.value))
    return (number, *with_step_after(program, edit.step, Binary(edit.operands[0]), number.name))
