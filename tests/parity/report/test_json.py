"""Reports are written whole, or not at all, and refused before the work is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from records import result, row

from jaxllama.errors import InputError
from jaxllama.files import output
from jaxllama.files.output import check_outputs
from parity.report import json_file


def test_what_is_written_is_the_document(tmp_path: Path) -> None:
    found = result([row("embed"), row("logits", failed=True)])
    json_file.write(found, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(
        json.dumps(found.to_dict())
    )
    assert os.listdir(tmp_path) == ["out.json"]


def test_an_older_report_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    path.write_text("older")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"out\.json: cannot be written: No space left"):
        output.write_text(path, "newer")
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["out.json"]


def test_standard_output_keeps_what_was_printed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    code = (
        "from pathlib import Path; from parity.report.json_file import write_text;"
        "print('the verdict', flush=True); write_text(Path('/dev/stdout'), 'the report')"
    )
    for opened in ("w", "a"):
        with path.open(opened) as file:
            subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert path.read_text() == "the verdict\nthe report" * 2
    with path.open("w") as file:  # another file is replaced
        subprocess.run(
            [sys.executable, "-c", code.replace("/dev/stdout", str(tmp_path / "x"))], stdout=file
        )
    assert path.read_text() == "the verdict\n" and (tmp_path / "x").read_text() == "the report"


def test_an_existing_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("older")
    output.check_writable(path)
    output.write_text(path, "newer")
    assert path.read_text() == "newer"


@pytest.fixture
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private")
def test_permissions_are_the_umasks_or_what_they_were(tmp_path: Path) -> None:
    output.write_text(tmp_path / "new", "text")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    (tmp_path / "old").write_text("older")
    (tmp_path / "old").chmod(0o640)
    output.write_text(tmp_path / "old", "newer")
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_text('{\n "schema_version": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "target")
    output.check_writable(tmp_path / "link")
    output.write_text(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "newer"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    output.check_writable(tmp_path / "pipe")
    output.write_text(tmp_path / "pipe", "through")
    assert os.read(reading, 99) == b"through"
    os.close(reading)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("there", ["precious", None])
def test_a_link_to_what_is_no_report_is_not_followed(tmp_path: Path, there: str | None) -> None:
    if there is not None:
        (tmp_path / "target").write_text(there)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    before = sorted(os.listdir(tmp_path))
    for call in (output.check_writable, lambda path: output.write_text(path, "report")):
        with pytest.raises(InputError, match=r"a symbolic link to .*, which is no older report"):
            call(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == before
    assert there is None or (tmp_path / "target").read_text() == there


def test_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output.check_writable(tmp_path / "out.json")
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="is a directory"):
        output.check_writable(tmp_path)
    with pytest.raises(InputError, match="no directory"):
        output.check_writable(tmp_path / "missing" / "out.json")
    with pytest.raises(InputError, match="name too long"):
        output.check_writable(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="-: a report is a file"):
        output.check_writable(Path("-"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        output.check_writable(tmp_path / "out.json")


def test_a_report_destroys_nothing_that_is_read(tmp_path: Path) -> None:
    read, document = tmp_path / "read", json.dumps({"schema_version": 1}, indent=1)
    read.mkdir()
    (read / "config.json").write_text("{}")
    (read / "mask.npy").write_bytes(b"\x93NUMPY")
    (read / "older.json").write_text(document)
    (read / "older.html").write_text("<!doctype html>")
    (read / "arrays").mkdir()
    (read / "arrays" / "zarr.json").write_text("{}")
    (tmp_path / "link").symlink_to(read)
    (tmp_path / "out.json").symlink_to(read / "config.json")
    # An older report may lie beside what is read, and be replaced.
    check_outputs(
        *(read / name for name in ("older.json", "older.html", "new.json")), inputs=[read]
    )
    for path, given in [
        (read / "config.json", read),
        (tmp_path / "link" / "config.json", read),
        (read / "config.json", tmp_path / "link"),
        (read / "mask.npy", read / "mask.npy"),
        (read / "arrays" / "zarr.json", read),
    ]:
        with pytest.raises(InputError, match="which is read; choose another"):
            check_outputs(path, inputs=[given])
    with pytest.raises(InputError, match="is a symbolic link"):
        check_outputs(tmp_path / "out.json", inputs=[read])
    check_outputs(read / "config.json", inputs=["tiny"])
