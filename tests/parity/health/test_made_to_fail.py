"""Models made to fail: each is found at its layer and head, under its right name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unhealthy import Edited, leaking, on_column, one_vector, overflowing, scaled, times

import parity
from jaxllama import masks
from jaxllama.checkpoint.samples import tiny
from parity.health.grids import head_grids
from parity.health.report import HealthReport
from parity.subjects.jaxllama import run as jax_run

QK = ("self_attn.q_proj", "self_attn.k_proj")
OUT = ("self_attn.o_proj", "mlp.down_proj")
HEAD = slice(4 * 16, 5 * 16)  # query head 4


def health(checkpoint: Any = "tiny", **options: Any) -> HealthReport:
    return parity.check_health(checkpoint, **{"length": 64, "gradients": False} | options)


def grave(report: HealthReport) -> list[tuple[str, int | None, tuple[int, ...]]]:
    return [(f.rule, f.layer, f.heads) for f in report.findings if f.severity != "information"]


def test_random_weights_are_said_to_be_random_and_nothing_else_is() -> None:
    report = health()
    assert [f.rule for f in report.findings] == ["random-weights"]
    assert (report.verdict, report.exit_code, report.is_random) == ("healthy", 0, True)


def test_query_and_key_weights_times_30_collapse_entropy() -> None:
    report = health(scaled(30, *QK, layer=2))
    every = (0, 1, 2, 3, 4, 5)
    assert grave(report) == [("entropy-collapse", 2, every), ("max-logit", 2, every)]
    assert (report.verdict, report.exit_code) == ("faulty", 1)


def test_one_head_of_a_layer_collapses_alone() -> None:
    report = health(scaled(900, QK[0], layer=1, rows=HEAD))
    assert grave(report) == [("entropy-collapse", 1, (4,)), ("max-logit", 1, (4,))]


def test_values_that_are_all_one_vector_collapse_the_rank() -> None:
    report = health(subject=Edited({"layers.3.v_proj": one_vector}))
    assert grave(report) == [("rank-collapse", 3, (0, 1, 2, 3, 4, 5))]


def test_values_of_one_key_head_collapse_its_group_alone() -> None:
    def second(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:, :, :1], one_vector(values)[:, :, 1:]], axis=2)

    report = health(subject=Edited({"layers.0.v_proj": second}))
    assert grave(report) == [("rank-collapse", 0, (3, 4, 5))]


def test_a_head_fixed_on_one_column_is_found() -> None:
    report = health(subject=Edited({"layers.1.attn_probs": on_column(3, 9)}))
    assert grave(report) == [("single-column", 1, (3,))]
    assert "key 9 “" in report.findings[0].message


def test_the_same_on_the_first_column_is_a_sink() -> None:
    report = health(subject=Edited({"layers.1.attn_probs": on_column(3, 0)}))
    assert grave(report) == []
    assert "sink" in {f.rule for f in report.findings}


def test_a_leak_of_one_cell_is_found_at_its_place() -> None:
    report = health(subject=Edited({"layers.2.attn_probs": leaking(5, 20, 41)}))
    assert grave(report) == [("leakage", 2, (5,))]
    finding = report.findings[0]
    assert finding.value == pytest.approx(0.02)
    assert "query 20 “" in finding.message and "key 41 “" in finding.message


def test_a_mask_that_is_not_causal_leaks_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_run, "mask_spec", lambda inputs: masks.padding())
    report = health()
    assert grave(report) == [("leakage", i, (0, 1, 2, 3, 4, 5)) for i in range(5)]


def test_another_mask_may_be_intended() -> None:
    window = masks.causal() & masks.padding() & masks.window(8)
    report = health(mask=window)
    assert {f.rule for f in report.findings if f.severity == "error"} == {"leakage"}
    assert report.mask == str(window)
    assert grave(health(mask=masks.causal() & masks.padding())) == []


def test_a_residual_gain_that_explodes_is_found() -> None:
    report = health(scaled(1e4, *OUT, layer=3))
    assert grave(report) == [("residual-exploding", 3, ())]


def test_a_residual_gain_that_vanishes_is_found_and_its_gradients_too() -> None:
    report = health(scaled(1e-6, *OUT, layer=2), gradients=True)
    assert [f for f in grave(report) if f[1] == 2] == grave(report)
    assert {f[0] for f in grave(report)} == {"residual-vanishing", "gradient-vanishing"}


def test_gradients_that_overflow_are_found_at_the_layer_where_they_break() -> None:
    report = health(overflowing(4), gradients=True)
    assert grave(report) == [("gradient-not-finite", 4, ())]
    assert (report.verdict, report.exit_code) == ("faulty", 1)


def test_a_state_that_vanishes_is_found() -> None:
    report = health(subject=Edited({"layers.2.output": times(1e-3)}))
    assert ("residual-vanishing", 2, ()) in grave(report)


def test_tokens_that_are_all_alike_collapse_from_there_on() -> None:
    report = health(subject=Edited({"layers.1.output": one_vector}))
    found = grave(report)
    assert found[0] == ("rank-collapse", 1, ())
    assert {rule for rule, _, _ in found} == {"rank-collapse"}
    assert {layer for _, layer, _ in found} == {1, 2, 3, 4}


def test_rows_that_do_not_add_up_are_found() -> None:
    report = health(subject=Edited({"layers.0.attn_probs": times(0.9)}))
    assert grave(report) == [("row-sum", 0, (0, 1, 2, 3, 4, 5))]


def test_rows_that_are_off_by_little_are_marked_where_they_are_found() -> None:
    report = health(subject=Edited({"layers.0.attn_probs": times(0.999)}))
    assert grave(report) == [("row-sum", 0, (0, 1, 2, 3, 4, 5))]
    marked = {grid.kind.name: grid.marked for grid in head_grids(report)}
    assert marked["row_sum"] == 6 and sum(marked.values()) == 6


def test_the_made_to_fail_subject_is_sound_without_edits() -> None:
    """The harness itself alarms nobody: what is found is what was edited."""
    report = health(subject=Edited({"layers.2.attn_probs": lambda weights: weights}))
    assert grave(report) == []
    for one, other in zip(report.layers, health(tiny()).layers, strict=True):
        assert one.heads is not None and other.heads is not None
        np.testing.assert_allclose(one.heads.entropy, other.heads.entropy, rtol=1e-5)
