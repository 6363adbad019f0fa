"""Axes are laid out in another order, and read as if they were not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, with_step_after
from parity.diagnose.edits.operations import Relaid
from parity.diagnose.evidence import HELD_TAPS
from parity.subjects.torch_reference.operations import Cast, CastLike, Permute, Select, Value
from parity.subjects.torch_reference.program import Program
from parity.taps import AXES

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "layout"
# Of a layout that mixes rows of the batch with what is in them.
ROWS = "rows"


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose every order of the axes of taps with heads: of the result, and of what is read; of
    others, rows and tokens exchanged.

    Where a step puts axes in another order, what it makes is proposed too, but for rows.
    """
    config = trial.reference.config
    kv_heads = config.num_key_value_heads
    moved = dict(_moved(program))
    for name in (program[-1].name, *trial.seen, *moved):
        letters = moved.get(name) or axes(trial.tap if name == program[-1].name else name)
        value = values.get(name)
        if not isinstance(value, Tensor) or value.ndim != len(letters):
            continue
        if letters[:2] == "BT" and "N" not in letters:
            fn = Relaid(None, 1, (1, 0, *range(2, value.ndim)))
            said = f"{name} is laid out as TB{letters[2:]} and read as {letters}"
            yield Edit(trial.tap, ID, name, (ROWS,), fn, said, cost=1.3)
        if "N" not in letters:
            continue
        split = letters.replace("N", "KG")
        for order in permutations(range(len(split))):
            if order != tuple(sorted(order)) and not (name in moved and order[0]):
                turned = "".join(split[i] for i in order)
                fn = Relaid(letters.index("N"), kv_heads, order)
                said = f"{name} is laid out as {turned} and read as {split}"
                mixed = (ROWS,) if order[0] else ()
                yield Edit(trial.tap, ID, name, mixed, fn, said, cost=1.3)


def _moved(program: Program) -> Iterator[tuple[str, str]]:
    """Yield steps before the last that order axes anew, with their letters."""
    letters: dict[str, str] = {}
    for step in program[:-1]:
        read = step.inputs[0] if step.inputs else ""
        found = letters.get(read) or axes(read)
        if isinstance(step.fn, Select):
            found = found.replace("K", "N")
        elif isinstance(step.fn, Permute) and len(found) == len(step.fn.axes):
            found = "".join(found[axis] for axis in step.fn.axes)
            yield step.name, found
        elif not isinstance(step.fn, Cast | CastLike):
            continue
        letters[step.name] = found


def axes(tap: str) -> str:
    """Return the letters of a tap's axes, by its short name; none of what is no tap."""
    return AXES.get(HELD_TAPS.get(tap, f"layers.{tap}")) or AXES.get(tap, "")


def rewrite(program: Program, edit: Edit) -> Program:
    """Lay out after the step."""
    assert isinstance(edit.value, Relaid)
    return with_step_after(program, edit.step, edit.value)
