"""A constant is another number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import SOLVED, WHOLE, Edit, Number
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program, Step, bind, operand_names

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "number"
# Where the search begins, as multiples of the right number.
TIMES = (1.0, 0.5, 2.0, 0.1, 10.0, 1e-2, 1e2, -1.0)


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose every constant that the program reads, to be solved for."""
    for name in operand_names(program):
        value = values[name]
        if isinstance(value, Tensor) or name in WHOLE:
            continue
        said = f"{name} is {{}} in place of {value:.6g}"
        starts = tuple(float(value) * times for times in TIMES)
        yield Edit(trial.tap, ID, name, (), SOLVED, template=said, starts=starts)


def rewrite(program: Program, edit: Edit) -> Program:
    """Read a number of its own in the constant's place."""
    assert isinstance(edit.value, float)
    made = f"{edit.step}'"
    return (Step(made, (), Number(edit.value)), *bind(program, **{edit.step: made}))
