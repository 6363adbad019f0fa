"""`parity selftest` on the command line."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from pathlib import Path

import pytest

from parity import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["parity", "selftest", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_a_family_is_injected_and_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "matrix.json"
    code = call(monkeypatch, "--family", "R10,E1", "--json", str(path), "--jobs", "1")
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.startswith("7 of 7 injections of 3 kinds detected, 7 located")
    document = json.loads(path.read_text())
    assert document["summary"]["injections"] == document["summary"]["located"] == 7
    assert document["misses"] == []
    machine = document["environment"]["machine"]
    assert machine["torch_threads"] == 1  # as the runs have it
    assert f"machine: {machine['line']}" in " ".join(out.split())
    assert {row["family"] for row in document["injections"]} == {"R10", "E1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--family", "R3,Q7"], "--family Q7: expected some of"),
        (["--json", "missing/matrix.json"], "no directory missing"),
        (["--calibrate", "--quick"], "--calibrate: runs no injections"),
        (["--calibrate", "--seeds", "1,x"], "--seeds 1,x: expected whole numbers"),
        (["--seeds", "5,6"], "--seeds 5,6: only --calibrate makes models"),
    ],
)
def test_bad_usage_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("parity.selftest.run.selftest", lambda **_: pytest.fail("work was done"))
    assert call(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


def test_an_interrupt_ends_the_other_processes_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others: list[multiprocessing.process.BaseProcess] = []
    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))

    def interrupted(futures: object) -> None:
        others.extend(set(multiprocessing.active_children()) - {mine})
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("parity.selftest.run.as_completed", interrupted)
    mine.start()
    try:
        assert call(monkeypatch, "--family", "R10,E1", "--jobs", "2") == 130
        assert capsys.readouterr().err == "interrupted; nothing was written\n"
        # Not join: the pool's own thread may have reaped one and be about to say so.
        deadline = time.monotonic() + 30
        while any(one.exitcode is None for one in others) and time.monotonic() < deadline:
            time.sleep(0.05)
        codes = {process.exitcode for process in others}
        # One that has no work yet may have ended by itself.
        assert -signal.SIGTERM in codes and codes <= {0, -signal.SIGTERM}
        assert mine.is_alive()  # it is none of the selftest's
    finally:
        mine.terminate()
        mine.join()
