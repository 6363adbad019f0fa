"""Reports are written whole, or not at all, and refused before the work is done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from records import result, row

from jaxllama.errors import InputError
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
        json_file.write_text(path, "newer")
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["out.json"]


def test_an_existing_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("older")
    json_file.check_writable(path)
    json_file.write_text(path, "newer")
    assert path.read_text() == "newer"
    assert path.stat().st_mode & 0o777 == 0o644


def test_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_file.check_writable(tmp_path / "out.json")
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="is a directory"):
        json_file.check_writable(tmp_path)
    with pytest.raises(InputError, match="no directory"):
        json_file.check_writable(tmp_path / "missing" / "out.json")
    with pytest.raises(InputError, match="name too long"):
        json_file.check_writable(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        json_file.check_writable(tmp_path / "out.json")
