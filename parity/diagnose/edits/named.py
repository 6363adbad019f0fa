"""Edits that have a name: which ones a cause is, and what it calls them.

They are among those that the search would find, so that they are recognised where it found them
beside others; and they are tried before it, for they are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parity.diagnose.edits.edit import EVERYWHERE, SOLVED, Edit, Explanation, Scope
from parity.diagnose.edits.kinds import proposals
from parity.diagnose.edits.search import Bases, scopes, solve_edits
from parity.diagnose.solve import scaling_in_words
from parity.subjects.torch_reference.operands import program_of
from parity.subjects.torch_reference.program import operand_names

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

# In the place of a name: what the tap is computed of.
INPUT = "input of the tap"


@dataclass(frozen=True)
class Pattern:
    """Which edits are meant.

    Attributes:
        kind: id of the kind.
        step: name of the step or operand, or several of which it is any; `INPUT` is the tap's own.
        operands: exactly these; None for any.
        value: equal to this, or of this class; None for any.
        number: the one number that it is about; None for any, which is solved for.
    """

    kind: str
    step: str | tuple[str, ...]
    operands: tuple[str, ...] | None = None
    value: object = None
    number: float | None = None

    def fits(self, edit: Edit, read: str) -> bool:
        """Return whether an edit is one of these.

        Args:
            edit: any.
            read: what the tap is computed of.
        """
        steps = (self.step,) if isinstance(self.step, str) else self.step
        return (
            edit.kind == self.kind
            and edit.step in [_bound(step, read) for step in steps]
            and (
                self.operands is None
                or edit.operands == tuple(_bound(name, read) for name in self.operands)
            )
            and (
                self.value is None
                or edit.value == self.value
                or (isinstance(self.value, type) and isinstance(edit.value, self.value))
            )
            and (self.number is None or edit.value in (SOLVED, self.number))
        )


def _bound(name: str, read: str) -> str:
    return read if name == INPUT else name


@dataclass(frozen=True)
class NamedEdits:
    """A set of edits, and what it is called.

    In words, `{0:g}` is the first number that was solved for, `{edit}` the first edit's sentence,
    `{value.said}` what it puts in, `{scope}` where it holds, `{eps}` and the like a constant of the
    configuration.

    Attributes:
        said: what is wrong.
        edits: which, in the order in which they are made.
        effective, configured: what the operator did, and what it ought to do.
        scoped: whether they may hold for some heads or tokens alone.
        searched: whether they are left to the search, and only recognised.
        of: whose program they are edits of, where that is not the tap's own: `mask`; they may hold
            in some calls alone.
    """

    said: str
    edits: tuple[Pattern, ...]
    effective: str
    configured: str
    scoped: bool = False
    searched: bool = False
    of: str = ""

    def explanations(self, trial: OperatorTrial, enough: float) -> Iterator[Explanation]:
        """Yield these edits of an operator, with what they leave of it.

        Args:
            trial: the operator.
            enough: relative; numbers are not solved for more closely.
        """
        if self.searched:
            return
        for scope in self._scopes(trial):
            if scope.calls and not self.of:  # positions may be what is wrong there
                continue
            for edits in instances(trial.few, self.edits):
                found = solve_edits(trial.few, scope, edits, enough)
                if found is not None and not any(map(_is_nothing, found.edits)):
                    left = trial.left(found.edits, scope)
                    yield Explanation(found.edits, scope, left)

    def _scopes(self, trial: OperatorTrial) -> Iterator[Scope]:
        found = scopes(trial) if self.scoped or self.of else iter((EVERYWHERE,))
        yield from (scope for scope in found if self.scoped or not scope.axes)

    def among(self, edits: Sequence[Edit], read: str) -> tuple[Edit, ...]:
        """Return those of some edits that are these; none if not all are there.

        Args:
            edits: any.
            read: what the tap is computed of.
        """
        found: list[Edit] = []
        for pattern in self.edits:
            fitting = (e for e in edits if e not in found and pattern.fits(e, read))
            edit = next(fitting, None)
            if edit is None:
                return ()
            found.append(edit)
        return tuple(found)

    def words(self, text: str, trial: OperatorTrial, found: Explanation) -> str:
        """Put what was found into one of the texts."""
        numbers = [edit.value for edit in found.edits if isinstance(edit.value, float)]
        first, scope = found.edits[0], found.scope.said
        scaling = scaling_in_words(trial.reference.config.rope_scaling)
        constants = trial.operands.constants | {"scaling": scaling}
        said = text.format(*numbers, edit=first.said, value=first.value, scope=scope, **constants)
        return said.rstrip()


def _is_nothing(edit: Edit) -> bool:
    """Return whether an edit is a factor of zero: what is zero has other names."""
    return edit.operands == ("*",) and edit.value == 0


def instances(
    few: OperatorTrial, patterns: Sequence[Pattern], done: tuple[Edit, ...] = ()
) -> Iterator[tuple[Edit, ...]]:
    """Yield all sets of edits that fit patterns, one edit each."""
    if not patterns:
        yield done
        return
    bases = Bases.of(few, done)
    if bases is None:
        return
    pattern, read = patterns[0], read_by(few)
    for edit in proposals((pattern.kind,), few, bases.few.program, bases.few.values):
        if pattern.fits(edit, read):
            if pattern.number is not None:
                said = edit.template.format(f"{pattern.number:.6g}")
                edit = replace(edit, value=pattern.number, template="", said=said)
            yield from instances(few, patterns[1:], (*done, edit))


def read_by(trial: OperatorTrial) -> str:
    """Return the tap that an operator is computed of; the first of several."""
    program = program_of(trial.tap, trial.reference.config)
    taps = [name for name in operand_names(program or ()) if name in trial.seen]
    return next((name for name in taps if name not in ("positions", "rope.inv_freq")), "")
