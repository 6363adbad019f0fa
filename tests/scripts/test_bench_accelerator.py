"""The script for a device that is lent, as far as a CPU can try it."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from small_llama import CONFIG

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts/bench_accelerator.py"
    spec = importlib.util.spec_from_file_location("bench_accelerator", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_verdicts_come_first_and_nothing_takes_more_than_its_time(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speed, too, which may hang in a compiler: what it has written by then is kept."""
    target = tmp_path / "found.json"
    hanging = (
        f"import json, pathlib, time; path = pathlib.Path({str(target)!r});"
        "path.write_text(json.dumps(json.loads(path.read_text()) | {'read_gb_s': 7.0}));"
        "time.sleep(60)"
    )
    monkeypatch.setattr(script, "verdicts", lambda small: [(command("print('equal')"), 9.0)])
    monkeypatch.setattr(script, "speed_command", lambda asked, left: command(hanging))
    monkeypatch.setattr(script, "later_verdicts", lambda small: [(command("print(1)"), 60.0)])
    begun = time.perf_counter()
    assert script.main(["--rehearse", "--json", str(target), "--seconds", "15"]) == 1
    assert time.perf_counter() - begun < 30
    found = json.loads(target.read_text())
    assert [one["exit_code"] for one in found["commands"]] == [0, -1, None]
    assert found["commands"][0]["said"].strip() == "equal" and found["read_gb_s"] == 7.0
    assert "not begun" in found["commands"][2]["said"]


def test_the_first_three_minutes_are_for_verdicts(script: ModuleType) -> None:
    limits = {words[4]: limit for words, limit in script.verdicts(False)}
    assert limits == {"tiny": 60.0, "smollm2": 120.0}
    speed = script.speed_command(script.options().parse_args(["--rehearse"]), 99.6)
    assert speed[2:3] == ["--speed"] and speed[-3:] == ["--seconds", "100", "--rehearse"]


def test_speed_is_written_into_what_is_known(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "REHEARSED", CONFIG)
    monkeypatch.setattr(script, "ROUNDS", 1)
    monkeypatch.setattr(script, "step_bytes", lambda config, dtype: 10**9)
    target = tmp_path / "found.json"
    target.write_text('{"device": "a", "commands": [{}]}')
    assert script.main(["--speed", "--rehearse", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found["device"] == "a" and found["commands"] == [{}]
    for form in ("stacked", "unrolled"):
        assert found[f"{form}_decode_b1_tokens_s"] != 0  # a difference of times, of a tiny model
        assert found[f"{form}_prefill_vs_product"] > 0 < found[f"{form}_prefill_blocks_tokens_s"]


def test_a_cpu_is_no_accelerator(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 2 and "JAX finds no GPU or TPU here" in capsys.readouterr().err
