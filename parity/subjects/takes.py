"""What a subject can be given: which masks, whose positions; what else there is it is not run on.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxllama.errors import InputError, argument, meant
from parity.inputs import Inputs
from parity.scenarios import SCENARIOS
from parity.subjects.base import Subject

Mask = Literal["padding", "packed", "windowed"]
Positions = Literal["any", "rows", "columns"]

# Masks beside the causal one, and what they hide, in words.
MASKS = {
    "padding": "pads before a real token",
    "packed": "other documents of a row",
    "windowed": "keys beyond a window",
}
POSITIONS = {
    "any": "as they are given",
    "rows": "real tokens of a row from its first",
    "columns": "columns",
}


@dataclass(frozen=True)
class Takes:
    """What an implementation can be given; by default anything.

    A scenario that asks for more is not run, and the verdict says so.

    Attributes:
        masks: beside the causal one: `padding` (pads stand before real tokens, on the left or
            amid them), `packed` (several documents in a row), `windowed`. None at all for one that
            is causal and no more: pads at a row's end need no mask.
        positions: `any`, as they are given; `rows`, it counts each row's real tokens from 0 itself;
            `columns`, it counts columns, pads and other documents included. These the reference is
            given, too: rotations are relative, so that all else is as it was.
        scenarios: names of those it is run on, whatever their masks; None for all.

    Raises:
        InputError: an unknown word in one of them.
    """

    masks: Sequence[Mask] = ("padding", "packed", "windowed")
    positions: Positions = "any"
    scenarios: Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = {
            "masks": (self.masks, MASKS),
            "positions": ([self.positions], POSITIONS),
            "scenarios": (SCENARIOS if self.scenarios is None else self.scenarios, SCENARIOS),
        }
        for field, (words, known) in given.items():
            for word in [words] if isinstance(words, str) else words:
                if word not in known:
                    raise InputError(
                        f"Takes({field}=): {word!r}: {meant(str(word), known)}expected of "
                        f"{', '.join(known)}"
                    )
        if not given["scenarios"][0]:
            raise InputError("Takes(scenarios=()): it would be run on nothing; leave it out")

    def sort(
        self, inputs: Sequence[Inputs], *, recount: bool = True
    ) -> tuple[list[Inputs], dict[str, str]]:
        """Return what of some scenarios a subject is run on, and why not on the others, by name.

        Args:
            inputs: the scenarios.
            recount: whether others may be given the positions that it counts itself; if not,
                scenarios of other positions are refused.
        """
        kept, refused = [], {}
        for one in inputs:
            counted = self._counted(one)
            why = self._refusal(one, counted if recount else one)
            if why is None:
                kept.append(counted)
            else:
                refused[one.name] = f"the subject {why}"
        return kept, refused

    def _refusal(self, inputs: Inputs, given: Inputs) -> str | None:
        """Return what stands against running on a scenario, `given` to the others as it is."""
        if self.scenarios is not None and inputs.name not in self.scenarios:
            return f"is declared to take {', '.join(self.scenarios)}"
        for mask in _masks_of(inputs):
            if mask not in self.masks:
                return f"takes no mask that hides {MASKS[mask]}"
        if self.positions == "any":
            return None
        first = np.argmax(inputs.valid, axis=1)
        started = inputs.positions[np.arange(len(first)), first]
        counted = self._counted(inputs) if self.positions == "columns" else _by_rows(inputs)
        if (started != 0).any() or (counted.positions != given.positions).any():
            return f"counts {POSITIONS[self.positions]} and takes no positions"
        return None

    def _counted(self, inputs: Inputs) -> Inputs:
        """Return a scenario with the positions that a subject of columns counts."""
        columns = np.arange(inputs.tokens.shape[1], dtype=inputs.positions.dtype)
        positions = np.where(inputs.valid, columns, 0).astype(inputs.positions.dtype)
        if self.positions != "columns" or (positions == inputs.positions).all():
            return inputs
        note = "positions are counted in columns on both sides, as the subject does"
        return replace(inputs, positions=positions, notes=(*inputs.notes, note))


def _by_rows(inputs: Inputs) -> Inputs:
    counted = np.where(inputs.valid, inputs.valid.cumsum(axis=1) - 1, 0)
    return replace(inputs, positions=counted.astype(inputs.positions.dtype))


ANYTHING = Takes()


def takes_of(subject: object) -> Takes:
    """Return what a subject declares to take."""
    found = getattr(subject, "takes", None)
    return found if isinstance(found, Takes) else ANYTHING


def nothing_taken(subject: Subject, refused: Mapping[str, str]) -> InputError:
    """Return the error of a subject that takes none of the scenarios; why not, by name."""
    why = "; ".join(f"{name}: {said}" for name, said in refused.items())
    return InputError(
        f"{argument('scenarios', ','.join(refused))}: subject {subject.name} takes none of them "
        f"({why}); ask for others, or widen its takes="
    )


def _masks_of(inputs: Inputs) -> list[Mask]:
    """Return which masks a scenario asks for beside the causal one."""
    found: list[Mask] = []
    if ((~inputs.valid).cumsum(axis=1) * inputs.valid).any():
        found.append("padding")
    if inputs.segments is not None:
        found.append("packed")
    if inputs.window is not None:
        found.append("windowed")
    return found
