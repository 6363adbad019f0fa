"""Curves in TensorBoard's event files: a record a number.

A record is its length, a checksum of that, the bytes of an `Event`, a checksum of these; an event
is a protocol buffer of a time, a step, and a name with a number. tensorboardX, which writes the
same, imports PyTorch where that is installed.

Source: tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto,
tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxllama.checkpoint.orbax.lengths import crc32c
from jaxllama.errors import InputError

_VERSION = b"brain.Event:2"
_MASK = 0xA282EAD8


class Events:
    """Writes numbers by step, of the first process alone.

    Args:
        folder: for event files.
        speaks: whether anything is written.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, speaks: bool = True) -> None:
        self._file = None
        if not speaks:
            return
        now = time.time()
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / name).open("wb")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
        self._file.write(record(_number(1, now) + _bytes(3, _VERSION)))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Note numbers of a step."""
        if self._file is None:
            return
        with np.errstate(over="ignore"):  # beyond float32, which the format has, is infinity
            packed = {n: np.float32(value).astype("<f4").tobytes() for n, value in figures.items()}
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + value) for name, value in packed.items()
        )
        when = _number(1, time.time()) + b"\x10" + _varint(step)
        self._file.write(record(when + _bytes(5, values)))
        self._file.flush()  # TensorBoard reads along

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def record(content: bytes) -> bytes:
    """Return bytes as a record of a file."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _number(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)
