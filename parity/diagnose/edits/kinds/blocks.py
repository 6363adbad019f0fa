"""A step works on blocks of an axis, each by itself, and the blocks are never put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from parity.diagnose.edits.edit import Edit, step_of, with_step
from parity.diagnose.edits.operations import InBlocks
from parity.subjects.torch_reference.operations import Reduce, Softmax, Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

ID = "blocks"
# Every size is tried up to here; of longer axes those that code has, and even parts.
EVERY = 32
PARTS = (2, 3, 4, 6, 8)


def propose(trial: OperatorTrial, program: Program, values: Mapping[str, Value]) -> Iterator[Edit]:
    """Propose blocks of every size, of what reduces an axis."""
    for step in program:
        read = values[step.inputs[0]] if step.inputs else None
        fn = step.fn
        if not isinstance(fn, Reduce | Softmax) or not isinstance(read, Tensor):
            continue
        if isinstance(fn.axis, int):
            for size in sizes(read.shape[fn.axis]):
                blocks = InBlocks(fn, size)
                said = f"{step.name} is {blocks.said}"
                yield Edit(trial.tap, ID, step.name, (), blocks, said, cost=1.2)


def sizes(length: int) -> list[int]:
    """Return how long blocks of an axis may be."""
    if length <= EVERY:
        return list(range(2, length))
    powers = {1 << n for n in range(1, length.bit_length())}
    return sorted(size for size in {*powers, *(-(-length // n) for n in PARTS)} if size < length)


def rewrite(program: Program, edit: Edit) -> Program:
    """Let the step work on blocks."""
    if step_of(program, edit.step) is None:
        raise KeyError(edit.step)
    return with_step(program, edit.step, fn=edit.value)
