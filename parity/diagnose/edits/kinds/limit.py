"""A value is cut off, or is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.operations import Clipped
from parity.subjects.torch_reference.operations import Unary, Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "limit"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose the largest value seen as a limit of the last step, and nothing for every value."""
    seen = torch.where(trial.compared & trial.target.isfinite(), trial.target, 0.0).abs()
    limit, last = float(seen.max()), program[-1].name
    fn = Clipped(limit)
    yield Edit(trial.tap, ID, last, (), fn, f"{last} is cut off at {limit:.6g}", cost=1.4)
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim:
            said = f"{name} is {'false' if value.dtype == torch.bool else 'zero'}"
            yield Edit(trial.tap, ID, name, (), Unary("zero"), said, cost=1.0)


def rewrite(program: Program, edit: Edit) -> Program:
    """Limit after the step."""
    assert isinstance(edit.value, Clipped | Unary)
    return with_step_after(program, edit.step, edit.value)
