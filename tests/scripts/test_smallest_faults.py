"""`scripts/smallest_faults.py` finds thresholds, and says when there is nothing to be said."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import smallest_faults

        yield smallest_faults
    sys.modules.pop("smallest_faults", None)


@pytest.fixture
def small(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Let all models be one of a few numbers."""
    tiny = script.tiny(seed=11, num_hidden_layers=1, hidden_size=90)
    monkeypatch.setattr(script, "checkpoint", lambda name: tiny)
    return script


def test_far_above_the_threshold_is_found_and_far_below_it_is_not(small: ModuleType) -> None:
    assert small.judge("base", "f32", None) == ("equal", "")
    (kind,) = (k for k in small.kinds() if k.name == "attention scale, relative")
    row = small.smallest(replace(kind, degrees=[5, 10, 15, 20, 25]), "f32")
    assert row.where.startswith("layers.0.attn_scores")
    assert (row.found, row.missed) in (("2^-15", "2^-20"), ("2^-20", "2^-25"))


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("one weight of lm_head, relative", "logits"),
        ("elements of a row of down_proj in bf16", "layers.0.down_proj"),
        ("products in TF32, K = 136", "layers.0.down_proj"),
        ("products in three-pass bf16, K = 90", "layers.0.q_proj"),
        ("norm eps, relative", "layers.0.input_layernorm"),
        ("rope theta, relative", "layers.0.q_rope"),
        ("probability on a hidden key", "layers.0.attn_probs"),
        ("probability moved to another key", "layers.0.attn_probs"),
    ],
)
def test_the_gross_fault_is_found_where_it_was_put(small: ModuleType, name: str, tap: str) -> None:
    """An injection that does nothing would read as blindness."""
    kind = next(k for k in small.kinds() if k.name == name and "f32" in k.lanes)
    verdict, where = small.judge(kind.model, "f32", kind.fault(kind.degrees[0]))
    assert verdict == "divergent" and where.rpartition(" ")[0] == tap


def test_bisection(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = script.Kind("made up", range(100), "degree {}".format, lambda k: {"degree": k})
    asked = []

    def judge(model: str, lane: str, fault: dict[str, int]) -> tuple[str, str]:
        asked.append(fault["degree"])
        return ("divergent", "q_proj free") if fault["degree"] <= threshold else ("equal", "")

    monkeypatch.setattr(script, "judge", judge)
    for threshold in (0, 41, 98):
        row = script.smallest(kind, "f32")
        assert row == script.Smallest(
            "made up", "f32", f"degree {threshold}", f"degree {threshold + 1}", "q_proj free"
        )
    assert len(asked) < 30
    threshold = -1
    assert script.smallest(kind, "f32") == script.Smallest("made up", "f32", missed="degree 0")
    threshold = 99
    assert script.smallest(kind, "f32").found == "degree 99"


def test_a_clean_twin_that_alarms_leaves_nothing_to_measure(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "judge", lambda *_: ("divergent", "layers.0.down_proj isolated"))
    kind = script.Kind("made up", range(9), str, lambda k: {})
    (row,) = script.measure([kind], ["f32"], Console(quiet=True))
    assert row.problem == "clean twin is divergent layers.0.down_proj isolated"
    assert not row.found


def test_two_measurements_make_one_table(script: ModuleType) -> None:
    facts = {
        "command": "python scripts/smallest_faults.py",
        "date": "2026-01-02",
        "commit": "abc",
        "processor": "some",
        "torch_instructions": "AVX2",
        "settings": {"XLA_FLAGS": "--some"},
        "versions": {"jax": "1"},
    }
    rows = [script.Smallest("a kind", "f32", "2^-9", "2^-10"), script.Smallest("other", "f64")]
    before = {"facts": facts, "rows": [asdict(row) for row in rows]}
    after = {"facts": facts, "rows": [asdict(replace(rows[0], found="2^-8"))]}
    lines = script.markdown([before, after]).splitlines()
    assert lines[0] == "| fault | f64 before | f64 after | f32 before | f32 after |"
    assert lines[2] == "| a kind |  |  | 2^-9 | 2^-8 |"
    assert lines[3].startswith("| other | none, not even")
    assert "XLA_FLAGS=--some python scripts/smallest_faults.py" in lines[-1]
