"""The experiment's own rules, and two of its runs: one that diverges, one that is sane."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import draw_health_experiment as drawing
import health_experiment as experiment
import made_to_fail
import pytest
from health_experiment import ABOVE, DIVERGING, NEITHER, SANE, STRETCH, Kind, Run

from jaxllama.train.config import MonitorSettings
from jaxllama.train.watch import HealthWarning

ROOT = Path(__file__).parents[2]
KIND = Kind("small", "f32", warmup=False, seed=6)
PUBLISHED = json.loads((ROOT / "docs" / "health-experiment.json").read_text())


def a_run(losses: list[float], rate: float = 1.0, warned: int | None = None) -> Run:
    first = {} if warned is None else {"max_logit": (warned, 1.0, "layer 0")}
    return Run(KIND, rate, losses, first)


def test_a_run_diverges_where_it_passes_its_start_for_good() -> None:
    above = [5 + ABOVE + 0.01] * STRETCH
    assert a_run([5.0, 5.1, 4.0, *above]).diverged == 4
    # What lies above the start already is part of the stretch.
    assert a_run([5.0, 4.0, 5.1, *above]).diverged == 3
    assert a_run([5.0, 4.0, *above[1:]]).diverged is None
    assert a_run([5.0, 4.0, *[5.1] * 200]).diverged is None
    assert a_run([5.0, 4.0, math.nan]).diverged == 3
    assert a_run([5.0, 4.0, 6.0, math.nan]).diverged == 3


def test_a_run_is_sane_by_the_best_of_its_kind() -> None:
    runs = [
        a_run([5.0] * 60, 1e-4),
        a_run([3.0] * 60, 1e-3),
        a_run([3.2] * 60, 1e-2),
        a_run([3.4] * 60, 1e-1),
        a_run([5.0, *[9.0] * 60], 1.0),
    ]
    assert experiment.outcomes(runs) == [SANE, SANE, SANE, NEITHER, DIVERGING]


def test_a_warning_at_or_after_the_crossing_is_not_in_time() -> None:
    lost = [5.0, *[9.0] * 60]
    runs = [a_run(lost, warned=1), a_run(lost, warned=2), a_run(lost), a_run([3.0] * 60, 1e-3, 7)]
    found = experiment.report(runs)
    assert (found["diverging"], found["warned_in_time"], found["notice"]) == (3, 1, [0, 1])
    assert (found["sane"], found["silent"]) == (1, 0)
    assert found["by_figure"]["max_logit"] == 1
    low, high = found["warned_interval"]
    assert low < 1 / 3 < high


def test_thresholds_lie_beyond_sane_runs_alone() -> None:
    sane, lost = a_run([3.0] * 60, 1e-3), a_run([5.0, *[9.0] * 60])
    usual = MonitorSettings()
    for figure in experiment.FIGURES:
        sane.extreme[figure], lost.extreme[figure] = getattr(usual, figure), 1e6
    sane.extreme["loss_spike"] = 0.1
    found = experiment.chosen([sane, lost])
    assert found["max_logit"] == 150 and found["update_ratio"] == pytest.approx(0.98)
    assert found["entropy"] == pytest.approx(0.0067) and found["residual"] == pytest.approx(0.013)
    assert found["loss_spike"] == usual.loss_spike  # never stricter than usual


def test_sane_runs_are_made_again_and_held_to_what_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(rate: float, outcome: str, final: float) -> dict[str, object]:
        return {"kind": asdict(KIND), "rate": rate, "outcome": outcome, "final": final}

    def runs_of(kind: Kind, rates: list[float]) -> list[Run]:
        made = [a_run([3.0] * 60, rate) for rate in rates]
        made[0].extreme["entropy"] = 0.005
        return made

    monkeypatch.setattr(experiment, "runs_of", runs_of)
    group = [told(1e-3, SANE, 3.0), told(1e-2, SANE, 3.01), told(1.0, DIVERGING, 9.0)]
    assert experiment.sane_again({"runs": {"a": group}}, "a") == 1
    with pytest.raises(ValueError, match=r"loss 3\.0000, was 2\.0000"):
        experiment.sane_again({"runs": {"a": [told(1e-3, SANE, 2.0)]}}, "a")


def test_both_the_frozen_and_the_shipped_thresholds_are_told_of() -> None:
    logits = [
        HealthWarning(n, "max_logit", "layer 0", 100.0 * n, "above", 100, "warn") for n in (2, 9)
    ]
    entropy = HealthWarning(3, "entropy", "layer 0", 0.005, "below", 0.01, "warn")
    silent, warned = a_run([3.0] * 60, 1e-3), a_run([3.0] * 60, 1e-3)
    experiment.take(silent, [logits[0], entropy], {"max_logit": 760, "entropy": 0.0012})
    experiment.take(warned, [*logits, entropy], {"max_logit": 760, "entropy": 0.0012})
    assert (silent.warned, silent.extreme) == (None, {"max_logit": 200, "entropy": 0.005})
    assert warned.warned == 9 and [*warned.first] == ["max_logit"]
    quiet = a_run([3.0] * 60, 1e-3)
    found = experiment.report([silent, warned, quiet])
    assert (found["sane"], found["silent"], found["silent_shipped"]) == (3, 2, 1)
    content = {"reports": {"one": found | {"notice": [1]}}, "runs": {"one": []}}
    assert drawing.warned(content).splitlines()[0].endswith("under the shipped thresholds |")
    assert drawing.warned(content).endswith("| 1 of 3 |")


def test_one_run_that_diverges_is_warned_in_time_and_one_that_is_sane_is_silent() -> None:
    """Two of the runs that the page tells of, shorter, under the thresholds that it tells of."""
    frozen = {"monitor": PUBLISHED["thresholds"]}
    lost, sane = experiment.runs_of(KIND, rates=(3.0, 1e-3), steps=60, changed=frozen)
    assert lost.diverged is not None and lost.warned is not None and lost.warned < lost.diverged
    assert sane.diverged is None and sane.warned is None and sane.losses[-1] < sane.losses[0] - 1
    told = {
        run["rate"]: run["losses"][:2]
        for run in PUBLISHED["runs"]["small, seeds 6-8"]
        if run["kind"] == {"size": "small", "dtype": "f32", "warmup": False, "seed": 6}
    }
    assert told[1e-3] == pytest.approx(sane.losses[:2], rel=1e-3)


def test_the_page_is_what_the_results_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("health-experiment.json", "made-to-fail.json", "health-experiment.md"):
        (tmp_path / name).write_bytes((ROOT / "docs" / name).read_bytes())
    monkeypatch.setattr(drawing, "DOCS", tmp_path)
    drawing.main()
    page = (ROOT / "docs" / "health-experiment.md").read_text()
    assert (tmp_path / "health-experiment.md").read_text() == page
    assert (tmp_path / "health-experiment.svg").stat().st_size < 500_000


def test_every_model_that_was_made_to_fail_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    published = json.loads((ROOT / "docs" / "made-to-fail.json").read_text())
    assert {one["checkpoint"] for one in published} == {"tiny", "smollm2"}
    assert len(published) == 12 and all(one["named"] for one in published)
    made = [asdict(one) for one in made_to_fail.look("tiny")]
    assert made == [one for one in published if one["checkpoint"] == "tiny"]
    swapped = replace(made_to_fail.FAILURES[0], rules=made_to_fail.FAILURES[1].rules)
    elsewhere = replace(made_to_fail.FAILURES[2], heads=(made_to_fail.HEAD + 1,))
    monkeypatch.setattr(made_to_fail, "FAILURES", (swapped, elsewhere))
    assert [one.named for one in made_to_fail.look("tiny")] == [False, False]
