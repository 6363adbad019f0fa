"""`parity.assert_equal` and `parity.write_report`, as other projects' tests use them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from records import result, row, witness_row

import parity
from jaxllama.errors import InputError
from parity.result import CauseReport

FAILED = [row("embed"), row("layers.0.q_rope", failed=True)]
CAUSE = CauseReport("rope-theta", "", "theta 1e6", confirmed=True, evidence=["1 -> 0"])


def test_an_equal_result_is_handed_back() -> None:
    found = result([row("embed")])
    assert parity.assert_equal(found) is found


def test_a_divergence_is_said_in_full() -> None:
    with pytest.raises(AssertionError) as raised:
        parity.assert_equal(result(FAILED, cause=CAUSE))
    said = str(raised.value)
    assert said.startswith("divergent: 2 taps in f64 against torch; first divergence layers.0.q_r")
    assert "1e+06 times the noise, limit 32" in said
    assert "cause: theta 1e6" in said
    assert said.endswith("again: parity run tiny")


def test_an_open_verdict_is_no_success() -> None:
    with pytest.raises(AssertionError, match="witnesses disagree: hf"):
        parity.assert_equal(result([row("embed")], witnesses=[witness_row(witness="hf", rho=99.0)]))


def test_a_run_is_made_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(checkpoint: str, **options: Any) -> parity.Result:
        asked.update(options, checkpoint=checkpoint)
        return result([row("embed")])

    monkeypatch.setattr("parity.runner.run.run", run)
    parity.assert_equal("here", dtypes="f64", scenarios="causal")
    assert asked == {"checkpoint": "here", "dtypes": "f64", "scenarios": "causal"}
    with pytest.raises(TypeError, match="options dtypes"):
        parity.assert_equal(result([row("embed")]), dtypes="f64")


def test_reports_are_written_whatever_the_verdict(tmp_path: Path) -> None:
    places = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html", "junit")}
    with pytest.raises(AssertionError):
        parity.assert_equal(result(FAILED), **places)
    assert '"verdict": "divergent"' in places["json"].read_text()
    assert "layers.0.q_rope" in places["html"].read_text()
    assert "<failure" in places["junit"].read_text()


def test_paths_are_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("work began before the paths were checked")

    monkeypatch.setattr("parity.runner.run.run", run)
    with pytest.raises(InputError, match="make it first"):
        parity.assert_equal("tiny", html=tmp_path / "missing" / "out.html")
    same = tmp_path / "out"
    with pytest.raises(InputError, match="two reports cannot be one file"):
        parity.write_report(result([row("embed")]), html=same, junit=tmp_path / "." / "out")
    assert os.listdir(tmp_path) == []
