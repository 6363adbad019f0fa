"""Rows added to a batch so that a mesh divides it, and cut off again from what comes out.

Else the rows of a scenario, of which there are three, would be whole on every device, and nothing
would be known of a batch that is cut. An added row is pads alone: nothing sees it, and it adds
nothing to a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from jaxllama.model import Llama
from jaxllama.sharding.rules import RULES
from parity.inputs import Inputs
from parity.subjects.base import Arrays, Run
from parity.taps import AXES, split_name

Item = TypeVar("Item")


def rows_added(model: Llama, rows: int) -> int:
    """Return how many rows a batch lacks to be cut along all axes of the model's mesh."""
    if model.sharding is None:
        return 0
    return -rows % math.prod(model.sharding.sizes[axis] for axis in RULES["batch"])


def with_rows(inputs: Inputs, added: int) -> Inputs:
    """Return a batch with rows of pads below its own."""
    if not added:
        return inputs

    def lengthened(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros((added, *values.shape[1:]), values.dtype)])

    return replace(
        inputs,
        tokens=lengthened(inputs.tokens),
        positions=lengthened(inputs.positions),
        valid=lengthened(inputs.valid),
        mask=lengthened(inputs.mask),
        segments=None if inputs.segments is None else lengthened(inputs.segments),
    )


def repeated(items: Sequence[Item], added: int) -> list[Item]:
    """Return items, the last of them as often again as rows are added."""
    return [*items, *[items[-1]] * added]


class CutRun:
    """A run whose batch has more rows than are shown of it.

    Args:
        run: of all rows.
        rows: how many are shown.
        added: how many are not.
    """

    def __init__(self, run: Run, rows: int, added: int) -> None:
        self._run, self._rows, self._added = run, rows, added

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        given = None
        if force is not None:
            # What an added row is given is of no matter, but for being finite.
            given = {
                n: self._lengthened(value) if _by_row(n) else value for n, value in force.items()
            }
        return cut_rows(self._run.step(given), self._rows)

    def _lengthened(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[-1:], self._added, axis=0)])


def cut_rows(arrays: Mapping[str, Any], rows: int) -> Arrays:
    """Return taps of the first rows alone."""
    return {name: value[:rows] if _by_row(name) else value for name, value in arrays.items()}


def cut_stages(stages: Iterator[Arrays], rows: int) -> Iterator[Arrays]:
    """Return stages of the first rows alone."""
    return (cut_rows(stage, rows) for stage in stages)


def _by_row(name: str) -> bool:
    return AXES.get(split_name(name)[0], "").startswith("B")
