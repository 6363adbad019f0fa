"""The arrays of an Orbax directory, each read by itself.

Orbax looks through the whole directory for every restoration: 0.1 s for each of 272 tensors, most
of which are read in a fraction of a millisecond (docs/performance.md). What our conversions leave
is read as the plain files that it is; anything else by TensorStore, which Orbax stands on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore

from jaxllama import files
from jaxllama.checkpoint.base import Index
from jaxllama.checkpoint.orbax.lengths import check_files, check_store
from jaxllama.checkpoint.orbax.plain_array import read_description, stored_bytes
from jaxllama.errors import CheckpointError
from jaxllama.files import limits

_STATE, _DESCRIPTION, _STORE = "state", "zarr.json", "manifest.ocdbt"
TREE = f"{_STATE}/_METADATA"  # names the arrays


class StoredArray(Protocol):
    """An array that can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""

    @property
    def dtype(self) -> np.dtype:
        """Return its dtype."""

    def read(self, index: Index | None = None) -> np.ndarray:
        """Return its values, or a part of them."""

    def check(self) -> None:
        """Check that those of its files that are there are as long as what they hold."""


@dataclass(frozen=True)
class _ByTensorStore:
    opened: Any
    directory: Path | None  # None in a store of many arrays

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.opened.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.opened.dtype.numpy_dtype)

    @property
    def about(self) -> dict[str, Any]:
        """Its metadata, as zarr has it."""
        found: dict[str, Any] = self.opened.spec().to_json()["metadata"]
        return found

    def read(self, index: Index | None = None) -> np.ndarray:
        self.check()
        return np.asarray(self.opened[... if index is None else index].read().result())

    def check(self) -> None:
        if self.directory is not None:
            check_files(self.directory, self.about)


class ArrayStore:
    """The arrays that Orbax saved in a directory.

    Attributes:
        arrays: by name.

    Raises:
        CheckpointError: one is damaged, or they are not one array for each name.
    """

    def __init__(self, directory: Path):
        """Open every array, and read none."""
        self._directory = directory
        try:
            about = files.read_json(directory / TREE, limits.INDEX_BYTES)
            self.arrays = _open(directory / _STATE, about)
        except Exception as error:  # TensorStore raises many kinds on a damaged directory
            raise damaged(directory, error) from None

    def check(self) -> None:
        """Check that all files that are there are as long as what they hold.

        Raises:
            CheckpointError: one is not.
        """
        try:
            for one in self.arrays.values():
                one.check()
        except Exception as error:
            raise damaged(self._directory, error) from None

    def read(self, name: str) -> np.ndarray:
        """Return one array.

        Raises:
            CheckpointError: it is damaged or lacks a part.
        """
        return self.read_part(name, None)

    def read_part(self, name: str, index: Index | None) -> np.ndarray:
        """Return a part of one array, of no more chunks than it lies in; all of it if None.

        Raises:
            CheckpointError: as for `read`.
        """
        try:
            return self.arrays[name].read(index)
        except Exception as error:
            raise damaged(self._directory, error) from None


def _open(state: Path, about: Mapping[str, Any]) -> dict[str, StoredArray]:
    found: dict[str, StoredArray] = {}
    opening = {}
    in_one_store = _in_one_store(state)
    in_files = about.get("use_zarr3") and not in_one_store
    names = list(_names(about))
    files.check_names(names, f"{state.parent / TREE}")
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no name of an array's directory")
        place = state / name
        plain = None
        if in_files:
            plain = read_description(place, files.read_json(place / _DESCRIPTION))
        if plain is None:
            # All at once: one after the other takes ten times as long.
            opening[name] = tensorstore.open(_spec(place, about), open=True, read=True)
        else:
            _check_unpacked(name, plain, (plain.shape, plain.cell), stored_bytes(place))
            found[name] = plain
    together = stored_bytes(state) if in_one_store and opening else 0
    opened = {}
    for name, one in opening.items():
        array = _ByTensorStore(one.result(), None if in_one_store else state / name)
        chunks = array.opened.chunk_layout
        shapes = (array.shape, chunks.read_chunk.shape, chunks.write_chunk.shape)
        _check_unpacked(name, array, shapes, together or stored_bytes(state / name))
        opened[name] = array
    if in_one_store:
        check_store(state, {name: one.about for name, one in opened.items()})
    return found | opened


def _check_unpacked(
    name: str, array: StoredArray, shapes: Sequence[tuple[int, ...]], stored: int
) -> None:
    """Refuse what would fill the memory: where it gets none TensorStore ends the process.

    Args:
        name: of the array.
        array: of which a host may have a part of the files.
        shapes: of what is made of its files.
        stored: their length in bytes.
    """
    for shape in shapes:
        files.check_shape(shape, name)
        nbytes = math.prod(shape) * array.dtype.itemsize
        if nbytes > max(limits.UNPACKED_BYTES, limits.UNPACKED_TIMES * stored):
            raise ValueError(f"{name} is {nbytes} bytes by its shape, its files have {stored}")


def described_files(directory: Path) -> list[str]:
    """Return the files without which no array of a directory can be opened, there or not."""
    try:
        about = files.read_json(directory / TREE, limits.INDEX_BYTES)
        if _in_one_store(directory / _STATE):
            return [TREE]
        last = _DESCRIPTION if about.get("use_zarr3") else ".zarray"
        return [TREE, *(f"{_STATE}/{name}/{last}" for name in _names(about))]
    except (CheckpointError, KeyError, TypeError, ValueError):  # which opening it says
        return [TREE]


def _names(about: Mapping[str, Any]) -> Iterator[str]:
    for described in about["tree_metadata"].values():
        keys = [step["key"] for step in described["key_metadata"]]
        if len(keys) != 1:
            raise ValueError("it does not describe one array for each name")
        yield keys[0]


def _in_one_store(state: Path) -> bool:
    """Whether all arrays lie in one store, as Orbax puts them by itself."""
    return (state / _STORE).exists()


def _spec(place: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return where TensorStore finds an array."""
    store: dict[str, Any] = {"driver": "file", "path": f"{place.resolve()}/"}
    if _in_one_store(place.parent):
        base = {"driver": "file", "path": f"{place.parent.resolve()}/"}
        store = {"driver": "ocdbt", "base": base, "path": f"{place.name}/"}
    return {
        "driver": "zarr3" if about.get("use_zarr3") else "zarr",
        "kvstore": store,
        # A part that is gone would read as zeros; older directories leave zeros out.
        "fill_missing_data_reads": not about.get("store_array_data_equal_to_fill_value"),
    }


def damaged(arrays: Path, error: Exception) -> CheckpointError:
    """Return one line about arrays that cannot be read."""
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(f"{arrays}: damaged or not complete: {reason}")
