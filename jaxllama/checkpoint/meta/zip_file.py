"""The zip archive of a .pth: where its records lie, checked such that no reader can differ.

A zip file says everything twice: in the directory at its end, and in a header before each record.
Which of the two a reader believes is its own affair, so that both have to agree. Records lie one
after the other without gaps, which also settles what a header says by itself: its own length.

Source: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3 to 4.5; `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path

from jaxllama.errors import CheckpointError, join_problems
from jaxllama.files import limits

_ENTRY, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_END, _END_64, _LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), "<4sIQI"
_LOCATOR_BYTES, _SIGNED, _WIDE, _WIDE_16 = 20, b"PK\x07\x08", 0xFFFFFFFF, 0xFFFF
_HAS_DESCRIPTOR, _UTF_8, _STORED, _WIDE_SIZES = 1 << 3, 1 << 11, 0, 1


@dataclass(frozen=True)
class Record:
    """A record of an archive.

    Attributes:
        name: below the folder that all lie in, such as `data.pkl` or `data/0`.
        offset: of its first byte in the file.
        nbytes: how long it is.
        checksum: CRC-32 of its bytes, as stated.
        stated_at: where in the file the checksum stands, once in its directory and once beside it.
    """

    name: str
    offset: int
    nbytes: int
    checksum: int
    stated_at: tuple[int, int]


@dataclass(frozen=True)
class _Entry:
    """An entry of the directory: a record as it is told of at the file's end."""

    name: bytes
    flags: int
    method: int
    checksum: int
    nbytes: int
    header: int
    stated_at: int


class _Problem(Exception):
    """What is wrong with the archive as a whole."""


def read_records(path: Path) -> list[Record]:
    """Return an archive's records, in the order in which they lie.

    The contents of all but the tensors' (`data/`) are compared with their checksums, unless the
    file has none: PyTorch can be told to leave them out, and then leaves out all.

    Raises:
        CheckpointError: directory and headers disagree, records overlap or leave gaps, or are
            compressed, encrypted or of odd names; or a checksum is wrong.
    """
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            try:
                entries, start = _directory(file, length)
            except _Problem as error:
                raise CheckpointError(
                    f"{path}: {length} bytes, truncated or not in PyTorch's zip format ({error}); "
                    "fetch it again"
                ) from None
            problems = _entry_problems(entries, start)
            if not problems:
                records, problems = _records(file, entries, start)
            if not problems and has_checksums(records):
                problems = _small_problems(file, records)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if problems:
        raise CheckpointError(join_problems(f"{path}: damaged", problems))
    return records


def has_checksums(records: list[Record]) -> bool:
    """Whether an archive was written with checksums."""
    return any(record.checksum for record in records)


def _at(file: BufferedIOBase, offset: int, count: int) -> bytes:
    if offset < 0:
        return b""
    file.seek(offset)
    return file.read(count)


def _directory(file: BufferedIOBase, length: int) -> tuple[list[_Entry], int]:
    """Return the entries of the directory, and where it begins."""
    end = length - _END.size
    raw = _at(file, end, _END.size)
    if len(raw) < _END.size or raw[:4] != b"PK\x05\x06":
        raise _Problem("no zip directory at its end")
    _, disk, first_disk, count_here, count, nbytes, start, comment = _END.unpack(raw)
    stated = (count, nbytes, start)
    if disk or first_disk or comment or count_here != count:
        raise _Problem("its zip directory is of several files, or followed by something")
    locator = _at(file, end - _LOCATOR_BYTES, _LOCATOR_BYTES)
    if locator[:4] == b"PK\x06\x07":
        _, disk, at, disks = struct.unpack(_LOCATOR, locator)
        end -= _LOCATOR_BYTES + _END_64.size
        raw = _at(file, end, _END_64.size)
        if disk or disks != 1 or at != end or raw[:4] != b"PK\x06\x06":
            raise _Problem("its zip64 directory is not where it says")
        _, size, _, _, disk, first_disk, count_here, count, nbytes, start = _END_64.unpack(raw)
        narrow = ((count, _WIDE_16), (nbytes, _WIDE), (start, _WIDE))
        pairs = zip(stated, narrow, strict=True)
        if any(said not in (value, widest) for said, (value, widest) in pairs):
            raise _Problem("its two zip directories disagree")
        if size != _END_64.size - 12 or disk or first_disk or count_here != count:
            raise _Problem("its zip64 directory is of several files")
    if start + nbytes != end:
        raise _Problem(f"its zip directory of {nbytes} bytes at {start} does not end at {end}")
    if nbytes > limits.ZIP_DIRECTORY_BYTES or count > limits.ZIP_ENTRIES:
        raise _Problem(
            f"a zip directory of {nbytes} bytes with {count} entries; at most "
            f"{limits.ZIP_DIRECTORY_BYTES} and {limits.ZIP_ENTRIES} are accepted"
        )
    return _entries(_at(file, start, nbytes), count, start), start


def _entries(raw: bytes, count: int, start: int) -> list[_Entry]:
    found, at = [], 0
    for _ in range(count):
        if len(raw) < at + _ENTRY.size or raw[at : at + 4] != b"PK\x01\x02":
            raise _Problem(f"its zip directory has fewer than {count} entries")
        fields = _ENTRY.unpack_from(raw, at)
        flags, method, checksum, packed, nbytes = fields[3], fields[4], *fields[7:10]
        name_at, extra_at = at + _ENTRY.size, at + _ENTRY.size + fields[10]
        extra = raw[extra_at : extra_at + fields[11]]
        nbytes, packed, header = _widened(extra, [nbytes, packed, fields[16]])
        name = raw[name_at:extra_at]
        if packed != nbytes:
            method = method or -1
        found.append(_Entry(name, flags, method, checksum, nbytes, header, start + at + 16))
        at = extra_at + fields[11] + fields[12]
    if at != len(raw):
        raise _Problem("its zip directory has more than its entries")
    return found


def _widened(extra: bytes, values: list[int]) -> list[int]:
    """Return sizes and offset, those too large for their fields taken from the zip64 field."""
    if _WIDE not in values:
        return values
    at, wide = 0, None
    while at + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, at)
        if kind == _WIDE_SIZES and wide is None:
            wide = iter(
                struct.unpack_from(f"<{min(nbytes, len(extra) - at - 4) // 8}Q", extra, at + 4)
            )
        at += 4 + nbytes
    try:
        return [next(wide or iter(())) if value == _WIDE else value for value in values]
    except StopIteration:
        raise _Problem("an entry of its zip directory lacks its sizes") from None


def _entry_problems(entries: list[_Entry], start: int) -> list[str]:
    problems, seen = [], set()
    folder = entries[0].name.split(b"/")[0] + b"/" if entries else b""
    for entry in entries:
        name, shown = entry.name, repr(entry.name)[2:-1]
        # Readers look for a name whatever its case.
        if name.lower() in seen:
            problems.append(f"{shown} occurs twice")
        seen.add(name.lower())
        try:
            parts = name.decode().split("/")
        except UnicodeDecodeError:
            parts = []
        strange = any(not c.isprintable() or c == "\\" for part in parts for c in part)
        if len(parts) < 2 or {"", ".", ".."} & set(parts) or strange or not name.startswith(folder):
            problems.append(f"{shown} is no name of a record")
        elif entry.method != _STORED:
            problems.append(f"{shown} is compressed")
        elif entry.flags & ~(_HAS_DESCRIPTOR | _UTF_8):
            problems.append(f"{shown} is encrypted, or in another way unusual ({entry.flags:#x})")
        elif entry.header + _LOCAL.size + entry.nbytes > start:
            end = entry.header + _LOCAL.size + entry.nbytes
            problems.append(f"{shown} needs {end} bytes, before the directory are {start}")
    return problems


def _records(
    file: BufferedIOBase, entries: list[_Entry], start: int
) -> tuple[list[Record], list[str]]:
    """Compare every entry with its header; return the records and what is wrong."""
    records, problems = [], []
    ordered = sorted(entries, key=lambda entry: entry.header)
    if ordered and ordered[0].header:
        problems.append(f"its first {ordered[0].header} bytes are of no record")
    ends = [entry.header for entry in ordered[1:]] + [start]
    for entry, end in zip(ordered, ends, strict=True):
        name = entry.name.decode()
        raw = _at(file, entry.header, _LOCAL.size + len(entry.name))
        if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
            problems.append(f"{name} has no header at {entry.header}")
            continue
        _, _, flags, method, _, _, *sums, name_bytes, extra_bytes = _LOCAL.unpack_from(raw)
        offset = entry.header + _LOCAL.size + name_bytes + extra_bytes
        if raw[_LOCAL.size :] != entry.name or name_bytes != len(entry.name):
            problems.append(f"{name} has another name in its header")
        elif flags != entry.flags or method != entry.method:
            problems.append(f"{name} is stored in another way by its header")
        elif place := _checksum_place(file, entry, offset, end, sums):
            record = Record(
                name.split("/", 1)[1],
                offset,
                entry.nbytes,
                entry.checksum,
                (entry.stated_at, place),
            )
            records.append(record)
        else:
            problems.append(
                f"{name} has {entry.nbytes} bytes by the directory, not so by its header, or does "
                "not end where the next begins"
            )
    return records, problems


def _checksum_place(
    file: BufferedIOBase, entry: _Entry, offset: int, end: int, sums: list[int]
) -> int:
    """Return where beside a record its checksum stands; 0 if sizes and checksum do not agree."""
    expected = (entry.checksum, entry.nbytes, entry.nbytes)
    left = end - offset - entry.nbytes
    if not entry.flags & _HAS_DESCRIPTOR:
        # Sizes that do not fit are in a field behind the name, which nobody writes without need.
        narrow = (entry.checksum, *(min(size, _WIDE) for size in expected[1:]))
        return 0 if left or tuple(sums) != narrow else entry.header + 14
    if any(stated not in (0, real, _WIDE) for stated, real in zip(sums, expected, strict=True)):
        return 0
    signed = len(_SIGNED) if left in (16, 24) else 0
    layout = {12: "<3I", 20: "<I2Q"}.get(left - signed)
    raw = _at(file, offset + entry.nbytes, left) if layout else b""
    if layout is None or raw[:signed] != _SIGNED[:signed] or len(raw) != left:
        return 0
    return offset + entry.nbytes + signed if struct.unpack(layout, raw[signed:]) == expected else 0


def _small_problems(file: BufferedIOBase, records: list[Record]) -> list[str]:
    """Return which records beside the tensors' are not as their checksums say, or too long."""
    problems = []
    for record in records:
        if record.name.startswith("data/"):
            continue
        if record.nbytes > limits.HEADER_BYTES:
            problems.append(f"{record.name} is {record.nbytes} bytes long")
        elif (found := zlib.crc32(_at(file, record.offset, record.nbytes))) != record.checksum:
            problems.append(f"{record.name}: checksum {found:08x}, stated {record.checksum:08x}")
    return problems


def add_checksums(path: Path) -> list[Record]:
    """Enter the checksums of all records but the tensors' into a file written without any."""
    records = read_records(path)
    with path.open("r+b") as file:
        for i, record in enumerate(records):
            if record.name.startswith("data/"):
                continue
            checksum = zlib.crc32(_at(file, record.offset, record.nbytes))
            records[i] = replace(record, checksum=checksum)
            for place in record.stated_at:
                file.seek(place)
                file.write(checksum.to_bytes(4, "little"))
    return records
