"""Whether files of arrays are as long as what they hold.

A byte left out or put in shifts all that follows it. TensorStore sees it where a file is one piece,
or a piece is compressed; not where pieces lie in a row, since it looks up each by its place alone.
Here the last piece has to end where the file, or what it says of its pieces, begins.

Values are no checksum's concern: Orbax leaves none of uncompressed arrays, so that bytes exchanged
for others are found by the manifest alone.

Source: the codec `sharding_indexed` of zarr 3; TensorStore's documentation of the OCDBT format.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from jaxllama.checkpoint.hf.safetensors_file import open_raw, read_into
from jaxllama.errors import CheckpointError

_ENTRY_BYTES, _CHECKSUM_BYTES = 16, 4
_ABSENT = (1 << 64) - 1
# Whose length or checksum tells where a byte is missing.
_TELLING = {"zstd", "gzip", "zlib", "bz2", "crc32c"}
_POLYNOMIAL = 0x82F63B78


def _checksum_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _checksum_table()


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of a few bytes (RFC 3720, B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def check_files(directory: Path, about: Mapping[str, Any]) -> None:
    """Check the files of an array that lie in a directory of its own.

    Args:
        directory: of the array.
        about: its metadata, of either version of zarr.

    Raises:
        CheckpointError: pieces of a file do not end where the file does.
    """
    codecs = about.get("codecs") or []
    last = codecs[-1].get("name") if codecs else ""
    if last == "zstd":
        for file in _files(directory):
            _check_frame(file)
    if last != "sharding_indexed":
        return  # one piece a file, whose length TensorStore compares
    setting = codecs[-1]["configuration"]
    cell, piece = about["chunk_grid"]["configuration"]["chunk_shape"], setting["chunk_shape"]
    count = math.prod(c // p for c, p in zip(cell, piece, strict=True))
    checked = any(codec["name"] == "crc32c" for codec in setting["index_codecs"])
    index_bytes = count * _ENTRY_BYTES + checked * _CHECKSUM_BYTES
    first = setting.get("index_location") == "start"
    plain = [codec["name"] for codec in setting["codecs"]] == ["bytes"]
    nbytes = (
        math.prod(piece) * tensorstore.dtype(about["data_type"]).numpy_dtype.itemsize
        if plain
        else None
    )
    for file in _files(directory):
        _check_shard(file, count, index_bytes, first=first, nbytes=nbytes)


def _files(directory: Path) -> list[Path]:
    return sorted(f for f in directory.rglob("*") if f.is_file() and f.name != "zarr.json")


def _check_frame(path: Path) -> None:
    """Check that a file is one frame of zstd (RFC 8878, 3.1.1): what follows one is not looked at.

    Its blocks say their lengths, so that a byte more in one leaves a byte more at the end.
    """
    with open_raw(path) as file:
        length, head = os.fstat(file.fileno()).st_size, file.read(5)
        if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 5:
            return  # which TensorStore refuses
        about = head[4]
        single, checked = about >> 5 & 1, about >> 2 & 1
        content_bytes = (single, 2, 4, 8)[about >> 6]
        at, final = 5 + (not single) + (0, 1, 2, 4)[about & 3] + content_bytes, False
        while not final:
            file.seek(at)
            block = int.from_bytes(file.read(3), "little")
            if at + 3 > length:
                break
            final, repeats = bool(block & 1), block >> 1 & 3 == 1
            at += 3 + (1 if repeats else block >> 3)
    if at + 4 * checked != length:
        raise CheckpointError(f"{path}: {length} bytes, by what it says it has {at + 4 * checked}")


def _check_shard(
    path: Path, count: int, index_bytes: int, *, first: bool, nbytes: int | None
) -> None:
    with open_raw(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length < index_bytes:
            raise CheckpointError(f"{path}: {length} bytes, its index alone has {index_bytes}")
        raw = np.empty(count * _ENTRY_BYTES, np.uint8)
        read_into(file, 0 if first else length - index_bytes, raw)
    offsets, lengths = raw.view("<u8").reshape(count, 2).T.tolist()
    pieces = [(a, n) for a, n in zip(offsets, lengths, strict=True) if (a, n) != (_ABSENT,) * 2]
    end = max((a + n for a, n in pieces), default=index_bytes * first)
    expected = length if first else length - index_bytes
    if end != expected or any(nbytes not in (None, n) for _, n in pieces):
        raise CheckpointError(
            f"{path}: its pieces end at byte {end} by its index, but at {expected} by its length"
            if end != expected
            else f"{path}: a piece of its index is not of {nbytes} bytes"
        )


def check_store(state: Path, arrays: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the files of an OCDBT store, where arrays in it would be read shifted.

    Args:
        state: the store.
        arrays: their metadata, by name.

    Raises:
        CheckpointError: values do not end where their file does.
    """
    if all(_tells(about) for about in arrays.values()):
        return
    ends: dict[Path, int] = {}
    for store in (state, *sorted(state.glob("ocdbt.process_*"))):
        for path, end in _extents(store):
            ends[path] = max(end, ends.get(path, 0))
    for path, end in ends.items():
        length = path.stat().st_size
        if length != end:
            raise CheckpointError(f"{path}: {length} bytes, its store tells of {end}")


def _tells(about: Mapping[str, Any]) -> bool:
    """Whether an array's codecs fail where a byte is missing."""
    names = {codec.get("name") for codec in about.get("codecs") or ()}
    return bool(
        {(about.get("compressor") or {}).get("id"), *names} & {*_TELLING, "sharding_indexed"}
    )


def _extents(store: Path) -> Iterator[tuple[Path, int]]:
    """Yield the file and the end in it of each value and node that a store's versions hold."""
    base = tensorstore.KvStore.open({"driver": "file", "path": f"{store.resolve()}/"}).result()
    manifest = tensorstore.ocdbt.dump(base).result()
    # A node is checked against its checksum when it is looked at.
    waiting, seen = _locations([manifest]), set[str]()
    while waiting:
        location = waiting.pop()
        if location in seen:
            continue
        seen.add(location)
        kind, folder, name, offset, nbytes = location.split(":")
        yield store / folder / name, int(offset) + int(nbytes)
        if kind != "value":
            waiting += _locations([tensorstore.ocdbt.dump(base, location).result()])


def _locations(waiting: list[Any]) -> list[str]:
    """Return every reference in the description of a manifest or a node."""
    found = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found += [value[key] for key in ("location", "indirect_value") if key in value]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found
