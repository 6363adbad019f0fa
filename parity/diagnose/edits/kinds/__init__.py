"""Kinds of edits, one file each: what can be tried on a program, and how it is rewritten.

A kind's module has `ID`, `propose`, which yields edits of a program, and `rewrite`, which makes
one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from parity.diagnose.edits.edit import Edit
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial


class Kind(Protocol):
    """What a module of this package has."""

    ID: str

    def propose(
        self, trial: OperatorTrial, program: Program, values: Mapping[str, Value]
    ) -> Iterator[Edit]:
        """Yield the edits of this kind that may be tried.

        Args:
            trial: the operator; gives operands that the program does not read, too.
            program: as it has been edited so far.
            values: of its steps, and of the operands that it reads.
        """
        ...

    def rewrite(self, program: Program, edit: Edit) -> Program:
        """Return the edited program.

        Raises:
            KeyError: there is no such step.
        """
        ...


@cache
def kinds() -> dict[str, Kind]:
    """Return every kind by its id."""
    found: dict[str, Any] = {}
    for file in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(file.name)
        found[module.ID] = module
    return found


def apply_edits(program: Program, edits: Sequence[Edit]) -> Program:
    """Return a program with edits made one after the other."""
    for edit in edits:
        program = kinds()[edit.kind].rewrite(program, edit)
    return program


def edited_within(program: Program, edits: Sequence[Edit]) -> Program | None:
    """Return an edited program; None if it lacks what an edit is of."""
    if not all(edit.within(program) for edit in edits):
        return None
    try:
        return apply_edits(program, edits)
    except KeyError:
        return None


def proposals(
    ids: Sequence[str], trial: OperatorTrial, program: Program, values: Mapping[str, Value]
) -> Iterator[Edit]:
    """Yield the edits of some kinds; see `Kind.propose`."""
    for name in ids:
        yield from kinds()[name].propose(trial, program, values)
