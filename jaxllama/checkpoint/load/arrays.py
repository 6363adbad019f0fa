"""One array of a model, read from a checkpoint whole or a device's part at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxllama.checkpoint.base import Checkpoint, Index
from jaxllama.checkpoint.checks import all_finite, value_problems
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.names import ENTRIES
from jaxllama.forms import Path, parts_of
from jaxllama.quantisation.arrays import hollow
from jaxllama.quantisation.choice import QuantScheme
from jaxllama.sharding.layout import ModelSharding
from jaxllama.sharding.parameters import on_leaves
from jaxllama.sharding.rules import Names


class ArrayReader:
    """Reads an array of a model out of the tensors that it holds.

    A format that cannot read a part of a tensor has the array read whole, once, for all parts.

    Args:
        checkpoint: what to read.
        path: of the array in the model, whatever its form.
        shape: of the array.
        dtype: that it is to have.
        how: it is held in fewer bits, if so: of float32 then.

    Attributes:
        problems: values that were found to be NaN, infinite or too large for the dtype.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        how: QuantScheme | None = None,
    ) -> None:
        self._checkpoint, self._path, self._shape, self._dtype = checkpoint, path, shape, dtype
        self._how = how
        self.problems: list[str] = []
        self._parts = 1
        # Replicas ask for the same part once more.
        self._known: dict[tuple[tuple[int, int], ...], Any] = {}

    def whole(self) -> Any:
        """Return all of the array, quantised if it is to be."""
        return self.part(None)

    def on_mesh(self, sharding: ModelSharding) -> Any:
        """Return the array on the devices of a mesh."""
        names = sharding.names_of(self._path, len(self._shape))
        if self._how is None:
            where = sharding.of(names, self._shape)
            return jax.make_array_from_callback(self._shape, where, self.part, dtype=self._dtype)

        self._parts = self._how.parts(self._shape[-1], sharding.parts(names, self._shape))
        number = itertools.count()

        def place(leaf: np.ndarray, names: Names) -> jax.Array:
            this = next(number)

            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                # A vector's scale is of all of it: vectors are read whole, and cut when rounded.
                rows = index[: len(self._shape) - 1]
                held = jax.tree.leaves(self.part((*rows, slice(None))))[this]
                return held[(..., *index[len(rows) :])]

            return jax.make_array_from_callback(leaf.shape, sharding.of(names, leaf.shape), part)

        return on_leaves(place, self._how.empty(self._shape, self._parts, hollow), names)

    def part(self, index: Sequence[slice] | None) -> Any:
        """Return a part of the array.

        Args:
            index: a slice for each axis; None for all of it.
        """
        index = (slice(None),) * len(self._shape) if index is None else index
        at = tuple(
            slice(*one.indices(length)[:2]) for one, length in zip(index, self._shape, strict=True)
        )
        key = tuple((one.start, one.stop) for one in at)
        if key not in self._known:
            everything = tuple(slice(0, length) for length in self._shape)
            if at == everything or self._checkpoint.part_reader is not None:
                self._known[key] = self._read(at)
            else:
                whole = self.part(everything)
                self._known[key] = whole[at if self._how is None else at[:-1]]
        return self._known[key]

    def _read(self, at: Index) -> Any:
        shape = tuple(one.stop - one.start for one in at)
        values: Any
        how = self._how
        values = np.empty(shape, self._dtype) if how is None else how.empty(shape, self._parts)
        first, rest = at[0], at[1:]
        for part in parts_of(self._path, self._checkpoint.config):
            name, place = ENTRIES[part.path].name("hf", part.layer), part.index
            if isinstance(place, int):  # of a stack of layers
                if not first.start <= place < first.stop:
                    continue
                read, place = self._checked(name, rest), place - first.start
            elif place == slice(None):
                read = self._checked(name, at)
            else:  # rows of a fused product, which are never cut
                assert first.start == 0 and first.stop == self._shape[0]
                rows = slice(0, self._checkpoint.tensors[name].shape[0])
                read = self._checked(name, (rows, *rest))
            if not self.problems:
                values[place] = read
        return values

    def _checked(self, name: str, at: Index) -> np.ndarray:
        info = self._checkpoint.tensors[name]
        whole = all(s == slice(0, n) for s, n in zip(at, info.shape, strict=True))
        values = self._checkpoint.read(name) if whole else self._checkpoint.read_part(name, at)
        return checked(name, values, self._dtype, self.problems)


def checked(name: str, values: np.ndarray, dtype: np.dtype, problems: list[str]) -> np.ndarray:
    """Return values in another dtype, and note which are NaN, infinite or too large for it."""
    found = value_problems(name, values)
    rounded = cast(values, dtype)
    if not found and not all_finite(rounded):
        found = [
            f"{name}: values up to {np.abs(values).max():g} overflow in {dtype}; "
            "bfloat16 and float32 hold them"
        ]
    problems += found
    return rounded
