"""The early warning: what it finds, what it does, what it costs, and where NaN begins."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import config, digest

from jaxllama.errors import TrainingError
from jaxllama.train import Progressed, TrainingRun, train
from jaxllama.train.config import MonitorSettings
from jaxllama.train.state import SavedStates, latest_step
from jaxllama.train.watch import HealthMonitor, HealthWarning, locate_nonfinite
from jaxllama.train.watch.monitor import shortly

LAYERS, HEADS = 5, 6
Q_PROJ, UP = "layers.self_attn.q_proj.weight", "layers.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watch")


def run_of(folder: Path, **monitor: Any) -> TrainingRun:
    return TrainingRun(config(folder, monitor={"every": 1} | monitor))


@pytest.fixture(scope="module")
def run(folder: Path) -> TrainingRun:
    return run_of(folder)


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_a_watched_step_is_a_step_and_has_all_figures(run: TrainingRun) -> None:
    batch = run.on_devices(next(run.batches))
    watched, figures, shown, found = run.monitor.step(run.state, {}, batch)
    copied = jax.tree.map(jnp.copy, run.state)
    plain, usual = run._step(copied, {}, batch)
    for a, b in zip(jax.tree.leaves(watched), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)
    assert float(figures.loss) == pytest.approx(float(usual.loss), rel=1e-5)
    assert shown.entropy.shape == shown.max_logit.shape == (LAYERS, HEADS)
    assert shown.residual.shape == (LAYERS,)
    assert shown.loss_max > shown.loss_mean > shown.loss_spread > 0
    for kind in (shown.gradient, shown.update_ratio):
        assert {name: value.shape for name, value in kind.items() if "layers" not in name} == {
            "embed_tokens.weight": (),
            "lm_head.weight": (),
            "norm.weight": (),
        }
        assert all(np.all(value > 0) for value in kind.values())
        assert kind[Q_PROJ].shape == (LAYERS,)
    total = sum(float(np.sum(np.square(value))) for value in shown.gradient.values())
    assert total**0.5 == pytest.approx(float(figures.gradient), rel=1e-5)
    assert found == []


def spoilt(run: TrainingRun, layer: int, factor: float, name: str = Q_PROJ) -> Any:
    weights = run.state.weights
    changed = weights[name].at[layer].multiply(factor)
    return run.state._replace(weights=weights | {name: changed})


def test_a_layer_whose_scores_explode_is_named(run: TrainingRun) -> None:
    batch = run.on_devices(next(run.batches))
    _, _, _, found = run.monitor.step(spoilt(run, 3, 100.0), {}, batch)
    logits = [one for one in found if one.figure == "max_logit"]
    assert {one.where.split(",")[0] for one in logits} == {"layer 3"}
    assert len(logits) == HEADS and logits[0].where == "layer 3, head 0"
    assert logits[0].value > logits[0].threshold == 100 and logits[0].action == "warn"
    assert str(logits[0]).startswith("step 1: max_logit ")
    assert str(logits[0]).endswith(" in layer 3, head 0, above 100")


def test_of_many_warnings_a_figure_the_worst_is_told() -> None:
    above = [
        HealthWarning(1, "max_logit", f"layer {i}", 100.0 + i % 3, "above", 100.0, "warn")
        for i in range(72)
    ]
    below = HealthWarning(1, "entropy", "layer 4, head 2", 0.002, "below", 0.01, "skip")
    assert shortly([*above, below]) == [f"{above[2]}; and 71 more such", str(below)]
    low = [replace(below, value=value) for value in (0.003, 0.001)]
    assert shortly(low) == [f"{low[1]}; and 1 more such"]
    assert shortly([]) == []


def test_what_is_done_beyond_a_threshold(folder: Path) -> None:
    made = {
        action: run_of(folder, **{action: ["max_logit"]}, clip_norm=1e-9, lower_by=0.25)
        for action in ("clip", "skip", "lower", "stop")
    }
    first = made["clip"]
    batch = first.on_devices(next(first.batches))
    bad = spoilt(first, 2, 100.0)
    plain = run_of(folder)
    after = {name: one.monitor.step(bad, {}, batch)[0] for name, one in made.items()}
    usual = plain.monitor.step(bad, {}, batch)[0]
    assert same(after["skip"].weights, bad.weights) and int(after["skip"].step) == 1
    assert same(after["stop"], bad)
    assert float(after["lower"].rate) == 0.25 and same(after["lower"].weights, usual.weights)
    assert not same(after["clip"].weights, usual.weights)
    moved = [float(jnp.abs(s.weights[UP] - bad.weights[UP]).max()) for s in (usual, after["clip"])]
    assert moved[0] > 2 * moved[1] > 0
    # None of it without a reason.
    good = plain.monitor.step(first.state, {}, batch)[0]
    for one in made.values():
        assert same(one.monitor.step(first.state, {}, batch)[0], good)


@pytest.mark.parametrize(("action", "factor"), [("skip", 1.0), ("lower", 0.25)])
def test_the_rate_that_is_told_is_applied(folder: Path, action: str, factor: float) -> None:
    plain = {"schedule": "linear", "learning_rate": 0.01, "warmup": 0, "weight_decay": 0.0}
    monitor = {"every": 1, "max_logit": 1e-9, action: ["max_logit"], "lower_by": 0.25}
    run = TrainingRun(
        config(folder, optimiser=plain | {"beta1": 0.0, "beta2": 0.0}, monitor=monitor)
    )
    assert run.advance(0).rate == pytest.approx(0.01)
    run.monitor = HealthMonitor(MonitorSettings(every=0), run.graph, run.optimiser)
    before = jax.tree.map(np.asarray, run.state.weights)
    told = run.advance(1).rate
    assert told == pytest.approx(factor * float(run.rate_of(1))) and told < 0.0095
    # Without memory of earlier gradients an update is the rate times a sign.
    moved = max(float(np.abs(run.state.weights[name] - before[name]).max()) for name in before)
    assert moved == pytest.approx(told, rel=1e-3)


def test_a_step_that_is_not_finite_moves_nothing_whatever_is_to_be_done(folder: Path) -> None:
    actions = ("clip", "skip", "lower")
    for one in (run_of(folder, **{action: ["max_logit"]}) for action in actions):
        bad = spoilt(one, 2, 100.0)
        huge = bad.weights[UP].at[3].multiply(1e38)
        bad = bad._replace(weights=bad.weights | {UP: huge})
        batch = one.on_devices(next(one.batches))
        after, figures, _, found = one.monitor.step(bad, {}, batch)
        assert not figures.finite and {w.figure for w in found} >= {"max_logit"}
        assert same(after, bad)


def test_entropy_that_is_low_from_the_start_is_no_collapse_and_a_fall_is(folder: Path) -> None:
    one = run_of(folder, entropy=0.2)
    batch = one.on_devices(next(one.batches))
    low = spoilt(one, 1, 1000.0)
    found = one.monitor.step(low, {}, batch)[3]
    assert not [w for w in found if w.figure == "entropy"]
    one.monitor.forget()
    one.monitor.step(one.state, {}, batch)
    again = run_of(folder, entropy=0.2)
    again.monitor.recall(json.loads(json.dumps(one.monitor.memory())))  # as a resumed run
    for monitor in (one.monitor, again.monitor):
        fallen = [w for w in monitor.step(low, {}, batch)[3] if w.figure == "entropy"]
        assert fallen and {w.where.split(",")[0] for w in fallen} == {"layer 1"}


def test_a_run_gone_on_with_remembers_its_losses(tmp_path: Path) -> None:
    train(config(tmp_path, run={"steps": 3}))
    run = TrainingRun(config(tmp_path, run={"steps": 4}))
    states = SavedStates(run.config, digest(run))
    run.state, run.batches.state, watched = states.restore(run.state)
    states.close()
    assert len(watched["losses"]) == 3 and np.shape(watched["entropy"]) == (LAYERS, HEADS)
    run.monitor.recall(watched)
    assert [*run.monitor._losses] == watched["losses"]


def test_a_run_that_is_stopped_leaves_the_state_before(tmp_path: Path) -> None:
    given = config(tmp_path, monitor={"every": 3, "update_ratio": 1e-9, "stop": ["update_ratio"]})
    told: list[Progressed] = []
    with pytest.raises(TrainingError, match=r"step 1: update_ratio .* the run is stopped; "):
        train(given, progress=told.append)
    assert latest_step(tmp_path / "out") == len(told) == 0
    # No progress tells what else was found in that step: the error does.
    also = {"max_logit": 1e-9, "stop": ["update_ratio"], "update_ratio": 1e-9}
    (tmp_path / "also").mkdir()
    with pytest.raises(TrainingError, match=r"step: \d+ of max_logit, \d+ of update_ratio; the st"):
        train(config(tmp_path / "also", monitor=also))


def test_the_first_steps_are_watched_more_often_than_the_rest(run: TrainingRun) -> None:
    monitor = HealthMonitor(MonitorSettings(every=10), run.graph, run.optimiser)
    assert [n for n in range(1, 41) if monitor.is_due(n)] == [1, 2, 4, 8, 10, 20, 30, 40]
    never = HealthMonitor(MonitorSettings(every=0), run.graph, run.optimiser)
    assert not any(never.is_due(n) for n in range(1, 41))


def test_a_run_that_begins_anew_knows_no_losses(run: TrainingRun) -> None:
    batch = run.on_devices(next(run.batches))
    for number in range(30):
        run.monitor.note_loss(0.1 + 0.001 * (number % 3))
    run.monitor.forget()
    assert not run.monitor.step(run.state, {}, batch)[3]
    assert not run.monitor.warnings


def test_a_loss_that_jumps_is_a_warning(run: TrainingRun) -> None:
    batch = run.on_devices(next(run.batches))
    for number in range(30):
        run.monitor.note_loss(0.1 + 0.001 * (number % 3))
    found = run.monitor.step(run.state, {}, batch)[3]
    assert [one.figure for one in found] == ["loss_spike"]
    run.monitor._losses.clear()


def test_it_costs_less_than_a_twentieth(folder: Path) -> None:
    run = TrainingRun(config(folder, data={"length": 128, "batch": 2, "packing": True}))
    batch = run.on_devices(next(run.batches))
    every = run.config.monitor.every
    seconds: dict[str, list[float]] = {"plain": [], "watched": []}
    for _ in range(9):
        began = time.perf_counter()
        jax.block_until_ready(run.step(batch))
        between = time.perf_counter()
        jax.block_until_ready(run.monitor.step(run.state, {}, batch)[:2])
        seconds["plain"].append(between - began)
        seconds["watched"].append(time.perf_counter() - between)
    plain, watched = (statistics.median(seconds[name][2:]) for name in ("plain", "watched"))
    share = (watched - plain) / plain / every
    print(f"plain {plain:.4f} s, watched {watched:.4f} s: {100 * share:.2f} % at every {every}")
    assert every == 50 and share < 0.05


def test_nan_is_located_forwards_and_backwards(run: TrainingRun) -> None:
    batch, weights = run.on_devices(next(run.batches)), run.state.weights

    def located(z_loss: float = 0.0, **changed: Any) -> str:
        return locate_nonfinite(run.graph, weights | changed, batch, z_loss=z_loss)

    assert located().startswith("nowhere")
    broken = weights[UP].at[2, 0, 0].set(jnp.nan)
    assert located(**{UP: broken}) == f"forward, first in the weights: {UP} of layer 2"
    # Finite weights whose products are not.
    huge = weights[UP].at[3].multiply(1e38)
    assert located(**{UP: huge}) == "forward, first at layers.3.up_proj"
    heads = weights[Q_PROJ].at[1].multiply(1e38)
    assert located(**{Q_PROJ: heads}) in {
        "forward, first at layers.1.q_proj",
        "forward, first at layers.1.attn_scores",
    }
    # Forwards all is finite: what a huge weight is multiplied by is 0.
    down, head = "layers.mlp.down_proj.weight", "lm_head.weight"
    deep = {
        UP: weights[UP].at[4].multiply(0),
        down: weights[down].at[4].multiply(1e38),
        head: weights[head] * 1000,
    }
    assert located(**deep) == "backward, first in the gradient of layers.4.mlp_act"
    # All of it is finite, but for squares: of gradients in their norm, of logits in z-loss.
    steep = located(**{head: weights[head] * 1e22})
    assert steep.startswith("backward, in their squares: the gradients are finite, the sum of ")
    assert " is of layers." in steep or f" is of {head}" in steep
    assert located(z_loss=1e-4, **{head: weights[head] * 1e22}) == "forward, first at z_loss"


def test_a_run_says_where_nan_began(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.state = spoilt(run, 3, 1e38, UP)
    with pytest.raises(TrainingError) as caught:
        run.advance(0)
    assert "step 1: the loss is nan" in str(caught.value)
    assert "forward, first at layers.3.up_proj" in str(caught.value)
