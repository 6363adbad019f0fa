"""Queries see keys by another rule than the scenario's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.visibility import READ, Sees
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "visible"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose the rules that show what the subject sees, of a mask alone.

    They are told by their cells: too many are possible to weigh keys by each.
    """
    for fn in trial.rules:
        yield Edit(trial.tap, ID, "mask", (fn.rule,), fn, fn.said)


def rewrite(program: Program, edit: Edit) -> Program:
    """See by the rule after the mask's program, or after the mask is read."""
    assert isinstance(edit.value, Sees)
    return with_step_after(program, edit.step, edit.value, *READ[1:])
