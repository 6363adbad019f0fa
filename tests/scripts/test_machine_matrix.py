"""`scripts/machine_matrix.py`: what a row proves, and what it does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxllama.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def matrix() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import machine_matrix

        yield machine_matrix
    sys.modules.pop("machine_matrix", None)


def tap(**changes: Any) -> dict[str, Any]:
    fields = {"tap": "layers.0.down_proj", "lane": "f32", "scenario": "causal", "mode": "free"}
    figures = {"error": 1e-7, "rho": 1.0, "limit": 4.0, "peak_rho": 3.0, "peak_limit": 6.0}
    return {**fields, **figures, "step": 0, "worst": None, "facts": {}, **changes}


def result(taps: list[dict[str, Any]], witness: float = 1e-7) -> dict[str, Any]:
    where = {"witness": "torch", "lane": "f32", "scenario": "causal", "mode": "free"}
    row = {**where, "worst_tap": "embed", "rho": 1.0, "error": witness}
    return {"taps": taps, "witnesses": [row]}


def test_the_largest_share_of_a_limit_is_that_of_the_nearer_figure(matrix: ModuleType) -> None:
    taps = [
        tap(),
        tap(tap="layers.1.q_proj", rho=2.4),
        tap(mode="isolated", rho="inf", tap="logits"),
    ]
    assert matrix.largest(taps) == {
        "f32": {"free": [0.6, "layers.1.q_proj"], "isolated": [float("inf"), "logits"]}
    }


def test_changes_are_told_by_side_and_dtype_and_their_absence_too(matrix: ModuleType) -> None:
    def row(document: dict[str, Any]) -> dict[str, Any]:
        return {"digests": matrix.digests(document)}

    plain = row(result([tap(), tap(lane="bf16")]))
    assert matrix.changed(row(result([tap(), tap(lane="bf16")])), plain) == ""
    moved = row(result([tap(), tap(lane="bf16", error=2e-7)]))
    assert matrix.changed(moved, plain) == "subject in bf16"
    assert matrix.changed(row(result([tap(), tap(lane="bf16")], 2e-7)), plain) == "witness in f32"
    assert matrix.changed({"verdict": "exit code 2"}, plain) == "not known"


@pytest.fixture
def measured(matrix: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let rows be measured in no time; return the names of those that were."""
    done: list[str] = []
    errors = {"XLA AVX2": 2e-7, "op by op": 3e-7}

    def measure(setting: Any, model: str, options: list[str]) -> dict[str, Any]:
        done.append(setting.name)
        taps = [tap(error=errors.get(setting.name, 1e-7))]
        divergent = setting.name == "XLA AVX2" and model == "smollm2"
        return {
            "verdict": "divergent" if divergent else "equal",
            "said": [],
            "seconds": 0.0,
            "largest": matrix.largest([tap(rho=8.0 if divergent else 1.0)]),
            "digests": matrix.digests(result(taps)),
        }

    monkeypatch.setattr(matrix, "measure", measure)
    monkeypatch.setattr(matrix, "processor", lambda: ("some", frozenset({"avx", "avx2"})))
    monkeypatch.setattr(matrix, "_commit", lambda: "abc")
    return done


def call(matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["machine_matrix.py", *arguments])
    return matrix.main()


def test_a_row_that_is_not_equal_fails_and_one_without_effect_says_so(
    matrix: ModuleType,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = "XLA AVX2,ATen avx2,XLA AVX512"
    assert call(matrix, monkeypatch, "--models", "tiny", "--rows", rows) == 0
    told = capsys.readouterr().out
    assert measured == ["plain", "XLA AVX2", "ATen avx2"]
    assert "tiny XLA AVX512: not at hand" in told
    assert "| plain | equal |  | free 0.50 |  | nothing |" in told
    assert "| XLA AVX2 | equal |  | free 0.50 |  | subject in f32 |" in told
    assert "| ATen avx2 | no effect |" in told
    missing = told.partition("Not at hand: ")[2]
    assert "XLA AVX512," in missing and "XLA AVX2," not in missing

    assert call(matrix, monkeypatch, "--models", "smollm2", "--rows", rows) == 1
    assert "| XLA AVX2 | divergent |  | free 2.00 (layers.0.down_proj) |" in capsys.readouterr().out


def test_rows_that_all_lack_effect_prove_nothing(
    matrix: ModuleType, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(matrix, monkeypatch, "--models", "tiny", "--rows", "ATen avx2") == 1
    assert call(matrix, monkeypatch, "--models", "tiny", "--rows", "plain") == 0


def test_rows_of_this_commit_are_not_run_again(
    matrix: ModuleType, measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "rows.json")
    options = "--models", "tiny", "--rows", "op by op", "--json", path
    assert call(matrix, monkeypatch, *options) == call(matrix, monkeypatch, *options) == 0
    assert measured == ["plain", "op by op"]
    monkeypatch.setattr(matrix, "_commit", lambda: "def")
    assert call(matrix, monkeypatch, *options) == 0
    assert measured == ["plain", "op by op"] * 2
    assert {row["commit"] for row in json.loads(Path(path).read_text())["rows"]} == {"def"}
    monkeypatch.setattr(matrix, "_commit", lambda: "def-dirty")  # of which there are many
    assert call(matrix, monkeypatch, *options) == call(matrix, monkeypatch, *options) == 0
    assert measured == ["plain", "op by op"] * 4


def test_a_page_is_filled_between_its_marks(matrix: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{matrix.START}\nold\n{matrix.STOP}\nbelow\n")
    matrix.fill(page, "new\n")
    assert page.read_text() == f"above\n{matrix.START}\n\nnew\n\n{matrix.STOP}\nbelow\n"
    page.write_text("no marks")
    with pytest.raises(InputError, match="has no"):
        matrix.fill(page, "new\n")
    assert page.read_text() == "no marks"


def test_settings_reach_the_process_and_no_others_do(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child writes down what it was given, in place of running parity."""
    child = (
        "import json, os, sys; n = int(sys.argv.pop(1)); "
        "n and os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n]); "
        "env = {'machine': {'settings': dict(os.environ), 'n': len(os.sched_getaffinity(0))}, "
        "'versions': sys.argv[1:]}; "
        "open(sys.argv[-1], 'w').write(json.dumps({'verdict': 'equal', 'taps': [], "
        "'witnesses': [], 'environment': env}))"
    )
    monkeypatch.setattr(matrix, "_CHILD", child)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("XLA_FLAGS", "--left-over")
    monkeypatch.delenv("JAXLLAMA_NO_CACHE", raising=False)
    (setting,) = (one for one in matrix.settings() if one.name == "all held to SSE4.2")
    row = matrix.measure(setting, "tiny", ["--mode", "free"])
    told = row["machine"]["settings"]
    assert row["machine"]["n"] == 1 and "OMP_NUM_THREADS" not in told
    assert {name: told[name] for name in setting.variables} == setting.variables
    assert told["JAXLLAMA_NO_CACHE"] == "1"  # each row compiles for itself
    assert row["versions"][:4] == ["run", "tiny", "--mode", "free"]

    monkeypatch.setattr(matrix, "_CHILD", "import sys; sys.exit('parity: no such model')")
    row = matrix.measure(setting, "huge", [])
    assert row["verdict"] == "exit code 1" and row["said"] == ["parity: no such model"]
