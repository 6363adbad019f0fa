"""One GGUF file: metadata and tensor directory, checked against the file's length as it is read.

The `gguf` package supplies the format's constants and dequantises. Its reader is not used: it
trusts the counts in the file, so that a damaged one makes it allocate without end, and it makes
several arrays for every string of a vocabulary, which takes seconds.

Source: `docs/gguf.md` in ggml's repository.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxllama import files
from jaxllama.checkpoint.dtypes import BFLOAT16
from jaxllama.checkpoint.hf.safetensors_file import read_raw
from jaxllama.errors import CheckpointError, join_problems
from jaxllama.files import limits

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BLOCK_BYTES = 1 << 24
_Type = gguf.GGUFValueType
_SCALARS = {
    _Type.UINT8: "<u1",
    _Type.INT8: "<i1",
    _Type.UINT16: "<u2",
    _Type.INT16: "<i2",
    _Type.UINT32: "<u4",
    _Type.INT32: "<i4",
    _Type.FLOAT32: "<f4",
    _Type.BOOL: "?",
    _Type.UINT64: "<u8",
    _Type.INT64: "<i8",
    _Type.FLOAT64: "<f8",
}
PLAIN: dict[gguf.GGMLQuantizationType, np.dtype] = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    gguf.GGMLQuantizationType.BF16: BFLOAT16,
    gguf.GGMLQuantizationType.F64: np.dtype(np.float64),
}
# Encodings that files of some months have, by their numbers; no reader of today knows them.
_REMOVED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
_ANEW = "quantise the float weights anew, as Q4_0 or IQ4_NL"


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in a file.

    Attributes:
        path: the file, of which a model may have several.
        type: how it is encoded.
        shape: outermost axis first, as in the other formats.
        offset: first byte, from the start of the file.
        nbytes: encoded length in bytes.
    """

    path: Path
    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass
class GGUFFile:
    """What a GGUF file says about itself, or the files that a model is split into.

    Attributes:
        metadata: values by key; arrays of numbers as NumPy arrays.
        tensors: by name.
        heads: how many bytes of each file lie before its tensors.
    """

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, GGUFTensor] = field(default_factory=dict)
    heads: dict[Path, int] = field(default_factory=dict)

    def head_digests(self) -> dict[str, str]:
        """Return the SHA-256 of what lies before the tensors, by file name."""
        return {
            path.name: hashlib.sha256(read_raw(path, 0, nbytes).data).hexdigest()
            for path, nbytes in self.heads.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor: F16, BF16, F32 and F64 as they are, quantised ones as float32.

        Raises:
            CheckpointError: the file changed while it was read.
        """
        tensor = self.tensors[name]
        if tensor.type in PLAIN:
            raw = read_raw(tensor.path, tensor.offset, tensor.nbytes)
            return raw.view(PLAIN[tensor.type]).reshape(tensor.shape)
        row_bytes = tensor.nbytes // max(1, math.prod(tensor.shape[:-1]))
        result = np.empty((math.prod(tensor.shape[:-1]), tensor.shape[-1]), np.float32)
        # In blocks of rows: dequantising makes several temporaries of the result's size.
        step = max(1, _BLOCK_BYTES // max(1, 4 * tensor.shape[-1]))
        for first in range(0, len(result), step):
            rows = result[first : first + step]
            at = tensor.offset + first * row_bytes
            raw = read_raw(tensor.path, at, len(rows) * row_bytes).reshape(len(rows), row_bytes)
            rows[...] = gguf.dequantize(raw, tensor.type)
        return result.reshape(tensor.shape)


class _Cursor:
    """Reads forward through the file's head, never past its end."""

    def __init__(self, path: Path):
        self.path, self.length, self.at = path, files.size(path), 0
        self.items = 0
        try:
            self.file = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    def take(self, count: int, what: str) -> bytes:
        if self.at + count > self.length:
            raise CheckpointError(
                f"{self.path}: truncated or damaged: {what} needs {self.at + count} bytes, the "
                f"file has {self.length}; fetch it again"
            )
        if self.at + count > limits.METADATA_BYTES:
            raise CheckpointError(
                f"{self.path}: {what} ends at byte {self.at + count}; at most "
                f"{limits.METADATA_BYTES} are accepted before the tensors"
            )
        data = self.file.read(count)
        self.at += count
        return data

    def number(self, layout: str, what: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def count(self, smallest: int, what: str, most: int = limits.METADATA_BYTES) -> int:
        """Read a count of at most `most` items that take at least `smallest` bytes each."""
        count = int(self.number("<Q", what))
        if count * smallest > self.length - self.at:
            raise CheckpointError(
                f"{self.path}: truncated or damaged: {what} is {count}, which needs "
                f"{self.at + count * smallest} bytes, the file has {self.length}; fetch it again"
            )
        if count > most:
            raise CheckpointError(f"{self.path}: {what} is {count}, at most {most} are accepted")
        return count

    def array(self, smallest: int, what: str) -> int:
        """Read the length of an array."""
        count = self.count(smallest, f"length of {what}", limits.GGUF_ITEMS - self.items)
        self.items += count
        return count

    def string(self, what: str) -> str:
        data = self.take(self.count(1, f"length of {what}"), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what} is not UTF-8 text: {error}") from error

    def value(self, kind: int, what: str) -> Any:
        kind = self._type(kind, what)
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        if kind == _Type.STRING:
            return self.string(what)
        item = self._type(self.number("<I", what), what)
        if item in _SCALARS:
            dtype = np.dtype(_SCALARS[item])
            count = self.array(dtype.itemsize, what)
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if item == _Type.STRING:
            return [self.string(what) for _ in range(self.array(8, what))]
        raise CheckpointError(f"{self.path}: {what} is an array of arrays, which is not supported")

    def _type(self, kind: int, what: str) -> gguf.GGUFValueType:
        try:
            return _Type(kind)
        except ValueError:
            raise CheckpointError(f"{self.path}: {what} has unknown type {kind}") from None


def read_head(path: Path) -> GGUFFile:
    """Read a file's metadata and tensor directory.

    Raises:
        CheckpointError: the file is truncated (with both sizes), damaged, or of another version or
            byte order.
    """
    cursor = _Cursor(path)
    with cursor.file:
        if cursor.length >= len(MAGIC):
            files.refuse_stranger(path, own=MAGIC)
        if cursor.take(4, "the magic number") != MAGIC:
            raise CheckpointError(f"{path}: does not begin with {MAGIC!r}; not a GGUF file")
        version = cursor.number("<I", "the version")
        if version not in _VERSIONS:
            hint = "; it is big-endian" if version and version & 0xFFFF == 0 else ""
            raise CheckpointError(f"{path}: GGUF version {version}, expected 2 or 3{hint}")
        tensor_count = cursor.count(24, "the count of tensors", limits.TENSORS)
        key_count = cursor.count(12, "the count of metadata keys", limits.GGUF_KEYS)
        found = GGUFFile(path)
        for _ in range(key_count):
            key = cursor.string("a metadata key")
            if key in found.metadata:
                raise CheckpointError(f"{path}: metadata key {key!r} occurs twice")
            found.metadata[key] = cursor.value(cursor.number("<I", key), key)
        directory = [_directory_entry(cursor) for _ in range(tensor_count)]
    found.heads[path] = cursor.at
    files.check_names([name for name, *_ in directory], str(path))
    alignment = found.metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment {alignment!r} is not a power of two")
    start = -(-cursor.at // alignment) * alignment
    _place(found, directory, start)
    _check_places(found, start, alignment, cursor.length)
    return found


@cache
def _is_readable(encoding: gguf.GGMLQuantizationType) -> bool:
    """Whether an encoding is of floats, or the package dequantises it; tried on one block."""
    if encoding in PLAIN:
        return True
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[encoding][1]), np.uint8)
    try:
        gguf.dequantize(block, encoding)
    except NotImplementedError:
        return False
    return True


def _directory_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor's name")
    rank = cursor.number("<I", name)
    if rank > 4:
        raise CheckpointError(f"{cursor.path}: {name} has {rank} axes, at most 4 are allowed")
    shape = tuple(cursor.number("<Q", name) for _ in range(rank))[::-1]
    files.check_shape(shape, f"{cursor.path}: {name}")
    return name, shape, cursor.number("<I", name), cursor.number("<Q", name)


def _place(
    found: GGUFFile, directory: list[tuple[str, tuple[int, ...], int, int]], start: int
) -> None:
    """Check the directory against itself, and enter it into `found`."""
    problems = []
    for name, shape, kind, offset in directory:
        if name in found.tensors:
            problems.append(f"{name} occurs twice")
            continue
        try:
            encoding = gguf.GGMLQuantizationType(kind)
        except ValueError:
            removed = _REMOVED.get(kind)
            problems.append(
                f"{name}: encoding {kind} is not known; make the file anew with another"
                if removed is None
                else f"{name}: encoding {removed} was removed from the format; {_ANEW}"
            )
            continue
        if not _is_readable(encoding):
            problems.append(f"{name}: encoding {encoding.name} cannot be dequantised; {_ANEW}")
            continue
        block, block_bytes = gguf.GGML_QUANT_SIZES[encoding]
        if not shape or shape[-1] % block:
            problems.append(f"{name}: rows of shape {shape} are no multiple of {block}")
            continue
        nbytes = math.prod(shape) // block * block_bytes
        found.tensors[name] = GGUFTensor(found.path, encoding, shape, start + offset, nbytes)
    if problems:
        raise CheckpointError(join_problems(f"{found.path}: invalid directory", problems))


def _check_places(found: GGUFFile, start: int, alignment: int, length: int) -> None:
    """Check that tensors follow each other to the file's end, with nothing but padding between.

    A byte left out or put in would shift all that follow it.
    """
    problems = []
    end, padded, previous = start, start, "the metadata"
    for name, tensor in sorted(found.tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset != padded:
            where = (
                f"inside {previous}"
                if tensor.offset < end
                else f"{previous} ends at {end}, so that {padded} is expected"
            )
            problems.append(f"{name}: begins at byte {tensor.offset}, {where}")
        end, previous = max(end, tensor.offset + tensor.nbytes), name
        padded = start + -(-(end - start) // alignment) * alignment
    if problems:
        raise CheckpointError(join_problems(f"{found.path}: invalid directory", problems))
    if end > length:
        raise CheckpointError(
            f"{found.path}: truncated: its directory describes {end} bytes, the file has {length}; "
            "fetch it again"
        )
    if found.tensors and length not in (end, padded):
        raise CheckpointError(
            f"{found.path}: too long: its directory describes {end} bytes, with padding {padded}, "
            f"the file has {length}; fetch it again"
        )
