"""Axes of heads are laid out in another order, and read as if they were not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.operations import Relaid
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program
from parity.taps import AXES

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "layout"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose every order of the axes of taps with heads: of the result, and of what is read."""
    config = trial.reference.config
    kv_heads = config.num_key_value_heads
    for name in (program[-1].name, *trial.seen):
        letters = AXES.get(f"layers.{trial.tap if name == program[-1].name else name}", "")
        value = values.get(name)
        if not isinstance(value, Tensor) or "N" not in letters or value.ndim != len(letters):
            continue
        split = letters.replace("N", "KG")
        for order in permutations(range(len(split))):
            if order != tuple(sorted(order)):
                turned = "".join(split[i] for i in order)
                fn = Relaid(letters.index("N"), kv_heads, order)
                said = f"{name} is laid out as {turned} and read as {split}"
                yield Edit(trial.tap, ID, name, (), fn, said, cost=1.3)


def rewrite(program: Program, edit: Edit) -> Program:
    """Lay out after the step."""
    assert isinstance(edit.value, Relaid)
    return with_step_after(program, edit.step, edit.value)
