"""Calibration: the largest of clean runs beside the limits."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from records import row
from rich.console import Console

from parity.lockstep.participants import Role
from parity.selftest.calibration import Figure, figures, ranges, table
from parity.selftest.clean_runs import calibration_runs, clean_runs
from parity.selftest.harness import Harness
from parity.selftest.models import checkpoint
from parity.selftest.report import show
from parity.selftest.results import CleanResult, SelftestResult


def test_the_largest_of_each_mode_is_kept() -> None:
    rows = [
        replace(row("layers.0.q_proj"), rho=1.0, peak_rho=3.0),
        replace(row("layers.1.q_proj"), rho=2.0, peak_rho=1.0),
        replace(row("layers.1.q_proj"), rho=0.5, mode="isolated"),
        replace(row("layers.0.attn_probs"), rho=0.1, facts={"total_variation_rounding": 0.2}),
    ]
    found = {(f.mode, f.quantity): (f.seen, f.tap) for f in figures(rows)}
    assert found["free", "rho"] == (2.0, "layers.1.q_proj")
    assert found["free", "peak"] == (3.0, "layers.0.q_proj")
    assert found["isolated", "rho"] == (0.5, "layers.1.q_proj")
    assert found["free", "total variation"] == (0.2, "layers.0.attn_probs")


def test_ranges_count_runs_and_tell_headroom() -> None:
    quiet, loud = (Figure("free", "rho", seen, 16.0, "logits") for seen in (2.0, 4.0))
    found = ranges([("f32", "one", [quiet]), ("f32", "two", [loud]), ("f64", "three", [quiet])])
    assert [(r.lane, r.runs, r.seen, r.headroom) for r in found] == [
        ("f64", 1, 2.0, 8.0),
        ("f32", 2, 4.0, 4.0),
    ]
    assert found[1].where == "two: logits"
    silent = ranges([("f32", "one", [replace(quiet, seen=0.0)])])[0]
    assert silent.headroom == float("inf") and silent.to_dict()["headroom"] is None


def test_what_passes_its_limit_is_shown_in_red() -> None:
    def colours(seen: float) -> str:
        out = io.StringIO()
        figure = Figure("free", "rho", seen, 16.0, "logits")
        console = Console(file=out, force_terminal=True, color_system="standard", width=80)
        console.print(table(ranges([("f32", "one", [figure])])))
        return out.getvalue()

    assert "\x1b[31m" in colours(17.0)
    assert "\x1b[31m" not in colours(15.0)


def test_a_calibration_shows_no_injections() -> None:
    figure = Figure("free", "rho", 3.2, 16.0, "logits")
    run = CleanResult("compiled", "base@101", "causal", "f32", "free", "equal", figures=(figure,))
    matrix, out = SelftestResult(clean=[run]), io.StringIO()
    show(matrix, Console(file=out, width=80))
    assert out.getvalue().startswith("0 false alarms in 1 clean runs")
    assert "3.2" in out.getvalue() and "injections" not in out.getvalue()
    (saved,) = matrix.to_dict()["calibration"]
    assert (saved["seen"], saved["limit"], saved["headroom"]) == (3.2, 16.0, 5.0)


def test_calibration_runs_are_many_and_on_fresh_models() -> None:
    runs = list(calibration_runs((101, 102)))
    assert len(set(runs)) == len(runs) >= 200
    assert {run.lane for run in runs} == {"f64", "f32", "bf16"}
    assert {run.mode for run in runs} == {"free", "decode", "grad"}
    both = {run.model for run in runs} & {run.model for run in clean_runs()}
    assert both == {"smollm2"}  # the trained one is what it is


@pytest.mark.parametrize("form", ["base", "mqa"])
def test_a_seed_gives_other_weights_of_the_same_form(form: str) -> None:
    usual, fresh, again = (checkpoint(name) for name in (form, f"{form}@101", f"{form}@101"))
    name = "model.layers.0.self_attn.k_proj.weight"
    assert fresh.config == usual.config
    assert np.array_equal(fresh.read(name), again.read(name))
    assert not np.array_equal(fresh.read(name), usual.read(name))


@pytest.mark.parametrize("lane", ["f64", "f32", "bf16"])
def test_a_bench_has_references_at_every_dtype(lane: str) -> None:
    """It asks for modes by name: not every one that `all` stands for runs at every dtype."""
    honest = Harness("base", lane)._beside(frozenset())
    assert any(entry.roles & {Role.NOISE, Role.NOISE_F32} for entry in honest)
    assert {mode for entry in honest for mode in entry.modes} >= {"free", "decode"}
