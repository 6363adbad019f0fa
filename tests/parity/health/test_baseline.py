"""Beside a baseline what changed comes first; of the same model nothing has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from unhealthy import scaled

import parity
from jaxllama.checkpoint import convert
from jaxllama.command_line.group import command
from parity.commands.health import health_command
from parity.health import page
from parity.health.baseline import HealthComparison, find_changes
from parity.health.report import HealthReport

QK = ("self_attn.q_proj", "self_attn.k_proj")


def against(
    checkpoint: Any, baseline: Any, **options: Any
) -> tuple[HealthReport, HealthComparison]:
    report = parity.check_health(
        checkpoint, baseline=baseline, **{"length": 48, "gradients": False} | options
    )
    assert report.comparison is not None
    return report, report.comparison


def test_of_the_same_model_nothing_changed() -> None:
    report, found = against("tiny", "tiny", gradients=True)
    assert (found.new, found.gone, found.changes) == ([], [], [])
    assert found.loss == report.loss
    assert "Nothing changed." in page.page(report)


def test_what_is_new_comes_first_even_before_graver_findings() -> None:
    hot = scaled(30, *QK, layer=2)
    both = scaled(30, *QK, layer=2)
    weights = {name: both.read(name) for name in both.tensors}
    weights["model.layers.4.self_attn.o_proj.weight"][:] *= np.float32(1e-6)
    weights["model.layers.4.mlp.down_proj.weight"][:] *= np.float32(1e-6)
    report, found = against(both, hot)
    assert [(f.rule, f.layer) for f in found.new] == [("residual-vanishing", 4)]
    assert [f.rule for f in report.findings][:2] == ["residual-vanishing", "entropy-collapse"]
    assert found.gone == []


def test_what_is_gone_is_said() -> None:
    _, found = against("tiny", scaled(30, *QK, layer=2))
    assert [(f.rule, f.layer) for f in found.gone] == [("entropy-collapse", 2), ("max-logit", 2)]


def test_a_fall_of_entropy_is_said_with_both_values_and_its_place() -> None:
    report, found = against(scaled(8, *QK, layer=1), "tiny")
    fallen = [c for c in found.changes if c.figure == "entropy" and c.layer == 1]
    assert len(fallen) == 6
    one = fallen[0]
    heads = report.layers[1].heads
    assert heads is not None and one.head is not None
    assert one.after == heads.entropy[one.head] < 0.3 < 0.4 < one.before
    assert not [c for c in found.changes if c.layer == 0]
    moved = [c.moved for c in found.changes]
    assert moved == sorted(moved, reverse=True) and min(moved) > 1


def test_gradients_are_compared_too() -> None:
    _, found = against(scaled(1e-3, "self_attn.o_proj", layer=3), "tiny", gradients=True)
    assert "added" not in {c.figure for c in found.changes if c.layer == 0}
    moved = {c.figure for c in found.changes if c.layer == 3}
    assert {"gradient query", "gradient key", "gradient value"} <= moved


def test_the_terminal_says_it_after_the_verdict(tmp_path: Path) -> None:
    convert(scaled(30, *QK, layer=2), tmp_path / "hot", to="hf")
    app = command("parity", about="", shown=(), exit_codes="", no_cache=lambda: None)
    app.command("health")(health_command)
    app.command("other")(lambda: None)
    words = [str(tmp_path / "hot"), "--baseline", "tiny", "--length", "48", "--no-gradients"]
    said = CliRunner().invoke(app, ["health", *words])
    lines = said.output.splitlines()
    assert said.exit_code == 1 and lines[0].startswith("faulty: ")
    assert lines[1].startswith("against tiny: 2 findings are new, 0 are gone, ")
    assert lines[2].startswith("  new: entropy-collapse: layer 2, heads 0-5: ")


def test_sizes_are_said_by_their_multiple() -> None:
    _, found = against(scaled(4, *QK, layer=1), "tiny")
    moved = [c for c in found.changes if c.figure == "max_logit" and c.layer == 1]
    assert moved and all(c.after > 8 * c.before for c in moved)


def test_a_finding_that_spreads_to_more_heads_is_new_and_its_return_is_not() -> None:
    one = scaled(900, QK[0], layer=1, rows=slice(4 * 16, 5 * 16))
    every = scaled(30, *QK, layer=1)
    _, found = against(every, one)
    places = [("entropy-collapse", 1), ("max-logit", 1)]
    assert [(f.rule, f.layer) for f in found.new] == places and found.gone == []
    assert all(f.heads == (0, 1, 2, 3, 4, 5) for f in found.new)
    _, back = against(one, every)
    assert (back.new, back.gone) == ([], [])  # head 4 is left


@pytest.mark.parametrize(
    ("figure", "factor"),
    [
        *(("leakage", 900.0), ("row_sum", 3.0), ("lazy_k", 3.0), ("one_distance", 0.1)),
        *(("value_residual", 0.1), ("ratio", 5.0), ("rollout", 3.0)),
    ],
)
def test_every_figure_is_compared(figure: str, factor: float) -> None:
    report = parity.check_health("tiny", length=48, gradients=False)
    base = report.layers[1]
    assert base.heads is not None and base.states is not None
    faulty = replace(base.heads, leakage=base.heads.leakage + 0.01, row_sum=np.full(6, 0.01))
    base = replace(base, heads=faulty)
    if figure == "rollout":
        moved = replace(base, rollout=base.rollout * factor)
    elif hasattr(base.states, figure):
        value = getattr(base.states, figure) * factor
        moved = replace(base, states=replace(base.states, **{figure: value}))
    else:
        value = getattr(faulty, figure) * factor
        moved = replace(base, heads=replace(faulty, **{figure: value}))
    layers = report.layers[:1]
    assert find_changes([*layers, base], None, [*layers, base], None) == []
    found = find_changes([*layers, moved], None, [*layers, base], None)
    assert found and {(one.figure, one.layer) for one in found} == {(figure, 1)}
