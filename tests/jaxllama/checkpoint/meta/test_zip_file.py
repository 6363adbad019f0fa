"""Archives whose directory and headers disagree, or whose bytes are not as their checksums say."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import pytest
import torch

from jaxllama.checkpoint import convert, stream, tiny
from jaxllama.checkpoint.meta.pth_file import Shard, plan_file
from jaxllama.checkpoint.meta.zip_file import read_records
from jaxllama.errors import CheckpointError
from jaxllama.files import limits

_TWO, FOLDER = ("data/0", "data/1"), "consolidated.00/"


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {n: torch.tensor(rng.normal(size=(4, 6)).astype(np.float32)) for n in "abc"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tensors):
    file = tmp_path_factory.mktemp("zip") / "consolidated.00.pth"
    torch.save(tensors, file)
    return file.read_bytes()


class _Bytes(bytearray):
    """An archive to be changed by the names of its parts."""

    def entries(self):
        """Return where entries of the directory and headers begin, by the record's name."""
        end = bytes(self).rindex(b"PK\x05\x06")
        _, count, _, at = struct.unpack("<8sHxxII", self[end : end + 20])
        found = {}
        for _ in range(count):
            lengths = struct.unpack("<3H", self[at + 28 : at + 34])
            name = bytes(self[at + 46 : at + 46 + lengths[0]]).decode()
            (header,) = struct.unpack("<I", self[at + 42 : at + 46])
            found[name.split("/", 1)[1]] = at, header
            at += 46 + sum(lengths)
        return found

    def data(self, name):
        header = self.entries()[name][1]
        lengths = struct.unpack("<2H", self[header + 26 : header + 30])
        return header + 30 + sum(lengths)

    def put(self, at, layout, *values):
        struct.pack_into(f"<{layout}", self, at, *values)

    def get(self, at, layout):
        return struct.unpack_from(f"<{layout}", self, at)[0]

    def rename(self, old, new, *, header=True, directory=True):
        """Give a record another name of the same length, its folder's included."""
        at, beside = self.entries()[old]
        for there, place in ((directory, at + 46), (header, beside + 30)):
            if there:
                assert len(new) == len(FOLDER + old)
                self[place : place + len(new)] = new.encode()


def _swap_offsets(archive):
    a, b = (archive.entries()[f"data/{i}"][0] + 42 for i in (0, 1))
    archive[a : a + 4], archive[b : b + 4] = archive[b : b + 4], archive[a : a + 4]


def _swap_names(archive):
    """Directory and headers alike, so that only the pickle's order is another."""
    places = [(at + 46, header + 30) for at, header in map(archive.entries().get, _TWO)]
    for (at, header), other in zip(places, reversed(_TWO), strict=True):
        new = (FOLDER + other).encode()
        archive[at : at + len(new)] = archive[header : header + len(new)] = new


def _shift(by):
    def change(archive):
        at = archive.entries()["data/1"][1] + 28
        archive.put(at, "H", archive.get(at, "H") + by)

    return change


def _field(where, offset, layout, value, name="data/1"):
    def change(archive):
        at = archive.entries()[name][where] + offset
        archive.put(at, layout, value(archive.get(at, layout)) if callable(value) else value)

    return change


def _both(first, second):
    def change(archive):
        first(archive)
        second(archive)

    return change


def _prefix(archive):
    archive[:0] = b"#!/bin/sh\n"


def _append(content):
    return lambda archive: archive.extend(content)


def _comment(archive):
    archive.put(len(archive) - 2, "H", 4)
    archive.extend(b"text")


def _end(offset, layout, value):
    return lambda archive: archive.put(len(archive) - 22 + offset, layout, value)


def _end_64(offset, value):
    return lambda archive: archive.put(len(archive) - 22 - 20 - 56 + offset, "Q", value)


def _descriptor(offset, value):
    return lambda archive: archive.put(archive.data("data/1") + 96 + offset, "I", value)


def _flip(archive):
    archive[archive.data("data/1") + 5] ^= 16


def _rename(new, **which):
    return lambda archive: archive.rename("data/1", new, **which)


ATTACKS = {
    "header says more before the tensor": _shift(8),
    "header says less before the tensor": _shift(-8),
    "directory has two offsets exchanged": _swap_offsets,
    "names exchanged in both": _swap_names,
    "another name in the header": _rename(f"{FOLDER}data/0", directory=False),
    "another name in the directory": _rename(f"{FOLDER}data/9", header=False),
    "twice": _rename(f"{FOLDER}data/0"),
    "twice but for case": _rename(f"{FOLDER}DATA/0"),
    "absolute": _rename("/dir/solidated.00/data"),
    "climbing": _rename(f"{FOLDER}../../"),
    "of another folder": _rename("consolidated.01/data/1"),
    "with a backslash": _rename(f"{FOLDER}data\\1"),
    "with a zero byte": _rename(f"{FOLDER}data\0001"),
    "encrypted": _both(_field(0, 8, "H", 2057), _field(1, 6, "H", 2057)),
    "strongly encrypted": _both(_field(0, 8, "H", 2120), _field(1, 6, "H", 2120)),
    "other flags in the header": _field(1, 6, "H", 2048),
    "compressed by the header": _field(1, 8, "H", 8),
    "compressed by the directory": _field(0, 10, "H", 8),
    "shorter by the directory": _both(
        _field(0, 20, "I", lambda n: n - 4), _field(0, 24, "I", lambda n: n - 4)
    ),
    "longer by the directory": _both(
        _field(0, 20, "I", lambda n: n + 16), _field(0, 24, "I", lambda n: n + 16)
    ),
    "of zip64 size without one": _field(0, 24, "I", 0xFFFFFFFF),
    "of another size packed": _field(0, 20, "I", 1),
    "of another size in the header": _field(1, 22, "I", 4),
    "at another place": _field(0, 42, "I", lambda n: n + 64),
    "beyond the end": _field(0, 42, "I", 1 << 30),
    "checksum of the directory": _field(0, 16, "I", 7),
    "checksum of nothing": _field(0, 16, "I", 0),
    "checksum beside it": _descriptor(4, 7),
    "size beside it": _descriptor(8, 92),
    "a bit of a tensor": _flip,
    "a bit of the pickle": lambda archive: archive.__setitem__(
        archive.data("data.pkl") + 30, archive[archive.data("data.pkl") + 30] ^ 1
    ),
    "something before": _prefix,
    "something behind": _append(b"\0"),
    "a comment": _comment,
    "a second directory": lambda archive: archive.extend(archive[-22:]),
    "count of the end": _end(10, "H", 3),
    "offset of the end": _end(16, "I", 0),
    "several disks": _end(4, "H", 1),
    "offset of the zip64 end": _end_64(48, 4),
    "count of the zip64 end": _end_64(32, 3),
    "size of the zip64 end": _end_64(40, 46),
    "place of the zip64 end": lambda archive: archive.put(len(archive) - 22 - 12, "Q", 64),
}


def _read(file):
    shard = Shard(file)
    return {name: np.array(shard.read(name)) for name in shard.shapes}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_disagrees_is_refused(tmp_path, plain, attack):
    file, archive = tmp_path / "consolidated.00.pth", _Bytes(plain)
    ATTACKS[attack](archive)
    assert bytes(archive) != plain
    file.write_bytes(archive)
    with pytest.raises(CheckpointError, match=str(file)):
        _read(file)


def test_what_agrees_is_read(tmp_path, plain, tensors):
    file = tmp_path / "consolidated.00.pth"
    file.write_bytes(plain)
    assert all(np.array_equal(values, tensors[n].numpy()) for n, values in _read(file).items())


def test_changed_bytes_are_refused_or_change_nothing(tmp_path, plain, tensors):
    rng, file, refused = random.Random(3), tmp_path / "consolidated.00.pth", 0
    for _ in range(400):
        archive = bytearray(plain)
        for _ in range(rng.choice([1, 1, 2])):
            archive[rng.randrange(len(archive))] = rng.choice([0, 1, 8, 255, rng.randrange(256)])
        file.write_bytes(archive)
        try:
            found = _read(file)
        except CheckpointError:
            refused += 1
            continue
        assert found.keys() == tensors.keys()
        for name, values in found.items():
            assert np.array_equal(values, tensors[name].numpy()), bytes(archive)
    assert 100 < refused < 400


def test_files_without_checksums_are_read(tmp_path, tensors):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert all(np.array_equal(v, tensors[n].numpy()) for n, v in _read(tmp_path / "a.pth").items())


def test_a_storage_longer_than_its_record(tmp_path, plain, tensors):
    """The pickle says how long a tensor is: more than its record would be its neighbour's."""
    archive = _Bytes(plain)
    at = archive.data("data.pkl")
    end = at + archive.get(archive.entries()["data.pkl"][0] + 24, "I")
    content = bytes(archive[at:end])
    changed = content.replace(b"K\x18t", b"K\x28t", 1)  # 24 elements of a storage, now 40
    assert changed != content
    archive[at:end] = changed
    for place in (archive.entries()["data.pkl"][0] + 16, end + 4):
        archive.put(place, "I", zlib.crc32(changed))
    (tmp_path / "a.pth").write_bytes(archive)
    with pytest.raises(CheckpointError, match="needs 160 bytes of a record of 96"):
        _read(tmp_path / "a.pth")


def _is_well_formed(file):
    with zipfile.ZipFile(file) as archive:
        found = archive.testzip() is None
    if shutil.which("unzip"):
        assert found == (
            subprocess.run(["unzip", "-tq", file], capture_output=True).returncode == 0
        )
    return found


@pytest.mark.parametrize("shards", [1, 2])
def test_ours_are_well_formed_to_others(tmp_path, shards):
    out = convert(tiny(num_hidden_layers=1), tmp_path / "out", to="meta", shards=shards).target
    for file in out.glob("*.pth"):
        assert _is_well_formed(file)
        records = {record.name: record for record in read_records(file)}
        assert all(record.checksum for record in records.values())
        content = bytearray(file.read_bytes())
        content[records["data/3"].offset] ^= 1
        file.write_bytes(content)
        assert not _is_well_formed(file)


def test_a_resumed_conversions_checksums_are_true(tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    def progress(*_):
        seen.append(None)
        if len(seen) == 6:
            raise Stopped

    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    seen: list[None] = []
    with pytest.raises(Stopped):
        convert("tiny", tmp_path / "out", to="meta", progress=progress)
    assert convert("tiny", tmp_path / "out", to="meta").resumed > 0
    assert _is_well_formed(tmp_path / "out" / "consolidated.00.pth")


def test_many_entries_are_refused_at_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for i in range(3000):
            archive.writestr(f"a/data/{i}", b"")
    assert len(read_records(tmp_path / "a.pth")) == 3000
    content = _Bytes((tmp_path / "a.pth").read_bytes())
    content.put(len(content) - 22 + 8, "HH", 20000, 20000)
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="fewer than 20000 entries"):
        read_records(tmp_path / "a.pth")
    content.put(len(content) - 22 + 8, "HH", 65000, 65000)
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"65000 entries; at most .* {limits.ZIP_ENTRIES}"):
        read_records(tmp_path / "a.pth")


def test_records_of_more_than_four_gigabytes(tmp_path):
    """In fields of 8 bytes; the file is sparse, and its tensors are not read."""
    shapes = {"a": ((1 << 30, 2), np.dtype(np.float16)), "b": ((5,), np.dtype(np.float32))}
    shapes["c"] = ((3,), np.dtype(np.float32))
    planned = plan_file(shapes)
    file = tmp_path / "consolidated.00.pth"
    with file.open("wb") as opened:
        opened.truncate(planned.length)
        for offset, content in planned.frame:
            opened.seek(offset)
            opened.write(content)
    records = {record.offset: record for record in read_records(file)}
    assert [records[planned.offsets[n]].nbytes for n in "abc"] == [1 << 32, 20, 12]
    assert planned.offsets["b"] > 1 << 32
    assert {n: records[planned.offsets[n]].stated_at for n in "abc"} == planned.checksums
    assert Shard(file).shapes == shapes
