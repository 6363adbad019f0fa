"""A value is cut off, flattened towards a limit, or is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parity.diagnose.edits.edit import SOLVED, Edit, Number, with_step_after
from parity.diagnose.edits.operations import Clipped, SoftCapped
from parity.subjects.torch_reference.operations import Unary, Value
from parity.subjects.torch_reference.program import Program, Step

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "limit"
SOFT = "soft"
# Flattened towards this, a value is as it was.
NO_LIMIT = 1e150
# Where the search for a soft limit begins, as multiples of the largest value seen.
TIMES = (1.01, 1.5, 3.0, 10.0)


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose the largest value seen as a limit of the last step, and nothing for every value."""
    seen = torch.where(trial.compared & trial.target.isfinite(), trial.target, 0.0).abs()
    limit, last = float(seen.max()), program[-1].name
    if limit > 0:
        fn = Clipped(limit)
        yield Edit(trial.tap, ID, last, (), fn, f"{last} is {fn.said}", cost=1.4)
        starts = (NO_LIMIT, *(limit * times for times in TIMES))
        said = f"{last} is c tanh({last} / c) with c = {{}}"
        yield Edit(trial.tap, ID, last, (SOFT,), SOLVED, template=said, starts=starts, cost=1.4)
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim:
            said = f"{name} is {'false' if value.dtype == torch.bool else 'zero'}"
            yield Edit(trial.tap, ID, name, (), Unary("zero"), said, cost=1.0)


def rewrite(program: Program, edit: Edit) -> Program:
    """Limit after the step."""
    if edit.operands == (SOFT,):
        assert isinstance(edit.value, float)
        number = Step(f"{edit.step} limit", (), Number(edit.value))
        return (number, *with_step_after(program, edit.step, SoftCapped(), number.name))
    assert isinstance(edit.value, Clipped | Unary)
    return with_step_after(program, edit.step, edit.value)
