"""One safetensors file: a header checked to the last byte, tensors read one at a time, written so.

The header is checked here, not by the library, because a damaged file has to be explained in one
line; tensors are read into memory of their own, not mapped, so that converting a large model does
not fill memory with pages already done with; and they are written one by one for the same reason.

Source: the format as documented in the `safetensors` repository's README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.dtypes import SAFETENSORS, TO_SAFETENSORS
from jaxllama.errors import CheckpointError, join_problems
from jaxllama.files import limits


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in a file.

    Attributes:
        dtype, shape: as stored.
        offset: first byte, from the start of the file.
        nbytes: length in bytes.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, Slot]:
    """Read which tensors a file holds, and check that it holds them whole.

    Returns:
        Slots by tensor name, in the order they lie in the file.

    Raises:
        CheckpointError: the file is truncated (with the size expected and the actual one), its
            header is not valid, or tensors overlap, leave gaps or run past the end.
    """
    length = files.size(path)
    head = _read(path, 0, 8) if length >= 8 else b""
    if not head:
        raise CheckpointError(
            f"{path}: {length} bytes, shorter than a safetensors header; fetch it again"
        )
    beginning = head + _read(path, 8, 500)
    # A header's length may look like anything; where one follows, it is that.
    if beginning[8:9] != b"{" and (what := files.stranger(beginning)):
        raise CheckpointError(f"{path}: is {what}")
    header_length = int.from_bytes(head, "little")
    if header_length > limits.HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header of {header_length} bytes, at most {limits.HEADER_BYTES} are accepted; "
            "not a safetensors file, or damaged"
        )
    start = 8 + header_length
    if start > length:
        raise CheckpointError(
            f"{path}: truncated: its header alone needs {start} bytes, the file has {length}; "
            "fetch it again"
        )
    header = files.parse_object(_read(path, 8, header_length), f"{path}: header")
    metadata = header.pop("__metadata__", {})
    files.check_names(header, f"{path}: header")
    slots, problems = {}, []
    if not isinstance(metadata, dict):
        problems.append("__metadata__ is not an object")
    for name, fields in header.items():
        try:
            slots[name] = _slot(fields, start)
        except CheckpointError as error:
            problems.append(f"{name}: {error}")
    slots = dict(sorted(slots.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    if not problems:
        problems = _gaps(slots, start)
    if problems:
        raise CheckpointError(join_problems(f"{path}: invalid header", problems))
    end = max((slot.offset + slot.nbytes for slot in slots.values()), default=start)
    if end != length:
        what = "truncated" if end > length else "too long"
        raise CheckpointError(
            f"{path}: {what}: its header describes {end} bytes, the file has {length}; fetch it "
            "again"
        )
    return slots


def _slot(fields: Any, start: int) -> Slot:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("needs exactly dtype, shape and data_offsets")
    dtype = SAFETENSORS.get(str(fields["dtype"]))
    if dtype is None:
        raise CheckpointError(
            f"dtype {str(fields['dtype'])[:40]!r} is not known; take the float checkpoint that it "
            "was made of"
        )
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _counts(shape) or len(shape) > 8:
        raise CheckpointError(f"shape {str(shape)[:80]} is not a list of counts")
    if 0 in shape:
        raise CheckpointError(f"shape {str(shape)[:80]} has no elements")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"data_offsets {str(offsets)[:80]} are not a begin and an end")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            f"data_offsets span {offsets[1] - offsets[0]} bytes, shape {tuple(shape)} of "
            f"{fields['dtype']} needs {nbytes}"
        )
    return Slot(dtype, tuple(shape), start + offsets[0], nbytes)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _gaps(slots: Mapping[str, Slot], start: int) -> list[str]:
    problems, end, previous = [], start, "the header"
    for name, slot in slots.items():
        if slot.offset != end:
            what = "overlaps" if slot.offset < end else "leaves a gap after"
            problems.append(f"{name}: begins at byte {slot.offset}, {what} {previous} (to {end})")
        end, previous = slot.offset + slot.nbytes, name
    return problems


def _read(path: Path, offset: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


ALIGNMENT = 64


def read_raw(path: Path, offset: int, nbytes: int) -> np.ndarray:
    """Read bytes of a file into an array of their own.

    Raises:
        CheckpointError: fewer bytes are there than asked for, or the file cannot be read.
    """
    # Where JAX can take it over as it is: it copies what is not aligned.
    spare = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -spare.ctypes.data % ALIGNMENT
    raw = spare[start : start + nbytes]
    with open_raw(path) as file:
        read_into(file, offset, raw)
    return raw


@contextmanager
def open_raw(path: Path) -> Iterator[FileIO]:
    """Open a file to be read by `read_into`.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        # Unbuffered and into huge pages: np.fromfile takes ten times the processor's time.
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def read_into(file: FileIO, offset: int, raw: np.ndarray) -> None:
    """Fill an array of bytes; see `read_raw`."""
    done, nbytes = 0, raw.size
    file.seek(offset)
    while done < nbytes and (count := file.readinto(raw[done:].data)):
        done += count
    if done != nbytes:
        raise CheckpointError(
            f"{file.name}: {done} bytes at offset {offset}, expected {nbytes}; the file changed "
            "while it was read"
        )


def read_tensor(path: Path, slot: Slot) -> np.ndarray:
    """Read one tensor in its stored dtype and shape."""
    return read_raw(path, slot.offset, slot.nbytes).view(slot.dtype).reshape(slot.shape)


def read_part(path: Path, slot: Slot, index: tuple[slice, ...]) -> np.ndarray:
    """Read a part of one tensor, and no byte of the file beside it.

    Args:
        path: the file.
        slot: of the tensor.
        index: a slice for each axis, with both ends.
    """
    first, *rest = index
    row = math.prod(slot.shape[1:])
    if all(one == slice(0, length) for one, length in zip(rest, slot.shape[1:], strict=True)):
        itemsize = slot.dtype.itemsize
        start, rows = slot.offset + first.start * row * itemsize, first.stop - first.start
        raw = read_raw(path, start, rows * row * itemsize)
        return raw.view(slot.dtype).reshape(rows, *slot.shape[1:])
    (columns,) = rest
    result = np.empty((first.stop - first.start, columns.stop - columns.start), slot.dtype)
    with open_raw(path) as file:
        for number, values in enumerate(result, first.start):
            start = slot.offset + (number * row + columns.start) * slot.dtype.itemsize
            read_into(file, start, values.view(np.uint8))
    return result


def build_header(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> tuple[bytes, int]:
    """Lay out a file.

    Args:
        tensors: dtype and shape by name, in the order they are to lie.

    Returns:
        The file's first bytes, and its total length in bytes.
    """
    # `format` tells transformers which framework's layout this is; it refuses files without it.
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        fields[name] = {
            "dtype": TO_SAFETENSORS[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned, so that readers can map them
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end
