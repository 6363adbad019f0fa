"""The script for a device that is lent, as far as a CPU can try it."""

from __future__ import annotations

import importlib.util
import json
import sys
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


def test_verdicts_come_first_and_a_failure_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "REHEARSED", CONFIG)
    monkeypatch.setattr(script, "ROUNDS", 1)
    monkeypatch.setattr(script, "step_bytes", lambda config, dtype: 10**9)
    wanted = [(command("print('equal')"), 60.0), (command("import time; time.sleep(60)"), 0.5)]
    monkeypatch.setattr(script, "verdicts", lambda small: wanted)
    target = tmp_path / "found.json"
    assert script.main(["--rehearse", "--json", str(target)]) == 1  # for the one that took too long
    found = json.loads(target.read_text())
    assert [one["exit_code"] for one in found["verdicts"]] == [0, -1]
    assert found["verdicts"][0]["said"].strip() == "equal"
    for form in ("stacked", "unrolled"):
        assert found[f"{form}_decode_b1_tokens_s"] != 0  # a difference of times, of a tiny model
        assert found[f"{form}_prefill_vs_product"] > 0


def test_a_cpu_is_no_accelerator(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 2 and "JAX finds no GPU or TPU here" in capsys.readouterr().err
