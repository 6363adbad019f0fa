"""What is done against diverging: exact to the bit, in training alone, and never a Llama's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trainings
from trainings import config, settings

from jaxllama import ConfigError, InputError
from jaxllama.cli import main
from jaxllama.train import TrainConfig, TrainingRun, train
from jaxllama.train.config import MitigationSettings
from jaxllama.train.mitigation import dropout_key, dropped, mitigated
from jaxllama.train.state import SavedStates, settings_of
from jaxllama.train.step import Batch, loss_and_gradients, summed_loss
from jaxllama.train.watch import locate_nonfinite
from jaxllama.train.watch.figures import watched_figures
from jaxllama.train.weights import QK_NORMS, holding

DROPOUT = {"attention_dropout": 0.2, "residual_dropout": 0.1, "seed": 4}
ALL = DROPOUT | {"qk_norm": True, "score_cap": 20.0, "logit_cap": 30.0}
NO_MODEL = {"export": False}
DOUBLE = {"dtype": "f64", "param_dtype": "f64"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mitigation")


def begun(folder: Path, mitigation: dict[str, Any], **changed: Any) -> tuple[TrainingRun, Batch]:
    """Return a run in float64 and its first batch."""
    model = DOUBLE | changed.pop("model", {})
    given = config(folder, model=model, mitigation=mitigation, run=NO_MODEL, **changed)
    run = TrainingRun(given)
    return run, run.on_devices(next(run.batches))


def graded(run: TrainingRun, batch: Batch, step: int = 0) -> Any:
    """Return what `loss_and_gradients` does."""

    def of(weights: Any, batch: Batch) -> Any:
        return loss_and_gradients(run.graph, weights, {}, batch, 0.0, run.config.mitigation, step)

    return jax.jit(of)(run.state.weights, batch)


def apart(first: Any, second: Any) -> float:
    """Return the largest difference of gradients, over the largest of each weight's."""
    pairs = [(np.asarray(a), np.asarray(second.gradients[n])) for n, a in first.gradients.items()]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def last_state(given: TrainConfig) -> list[bytes]:
    run = TrainingRun(given)
    states = SavedStates(given, trainings.digest(run))
    state, _, _ = states.restore(run.state)
    states.close()
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def test_a_run_that_was_stopped_drops_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def given(name: str, steps: int, **changed: Any) -> TrainConfig:
        (tmp_path / name).mkdir(exist_ok=True)
        return config(
            tmp_path / name,
            run=NO_MODEL | {"steps": steps},
            optimiser={"warmup": 0, "accumulate": 2},
            mitigation=ALL | changed,
        )

    whole = train(given("a", 3))
    assert whole.model is None and not (tmp_path / "a/out/model").exists()
    first = train(given("b", 1))
    rest = train(given("b", 3), resume=True)
    assert first.losses + rest.losses == whole.losses
    assert last_state(given("a", 3)) == last_state(given("b", 3))
    again = settings(tmp_path / "b", run=NO_MODEL | {"steps": 3}, mitigation=ALL)
    again["optimiser"] |= {"warmup": 0, "accumulate": 2}
    (tmp_path / "c.toml").write_text(trainings.toml(again))
    with pytest.raises(SystemExit, match="0"):
        main(["train", str(tmp_path / "c.toml"), "--quiet", "--resume"])
    assert capsys.readouterr().out == f"{tmp_path}/b/out: nothing left to train, 3 steps\n"
    with pytest.raises(InputError, match=r"\[mitigation\] seed = 5, then 4"):
        train(given("b", 3, seed=5), resume=True)


@pytest.fixture(scope="module")
def run_of_all(folder: Path) -> tuple[TrainingRun, Batch, Any]:
    run, batch = begun(folder, ALL)
    return run, batch, graded(run, batch)


def test_layers_computed_again_drop_the_same(
    run_of_all: tuple[TrainingRun, Batch, Any], folder: Path
) -> None:
    found = run_of_all[2]
    again = graded(*begun(folder, ALL, model={"remat": True}))
    assert float(again.loss) == pytest.approx(float(found.loss), rel=1e-13)
    assert apart(found, again) < 1e-11


def test_a_state_from_before_them_is_gone_on_with(folder: Path) -> None:
    def problems(mitigation: dict[str, Any]) -> list[str]:
        given = config(folder, mitigation=mitigation, run={"output": str(folder / "older")})
        states = SavedStates(given, "rows")
        older = {name: of for name, of in settings_of(given).items() if name != "mitigation"}
        found = states._differences({"settings": older, "rows": "rows"})
        states.close()
        return found

    assert problems({}) == []
    assert problems(DROPOUT)[0] == "[mitigation] attention_dropout = 0.2, then 0.0"


def test_every_step_and_seed_drops_other_values(
    run_of_all: tuple[TrainingRun, Batch, Any], folder: Path
) -> None:
    run, batch, found = run_of_all
    weights = run.state.weights

    @jax.jit
    def loss(key: Any) -> Any:
        part, model = Batch(*(x[0] for x in batch)), holding(run.graph, weights)
        tap = mitigated(run.config.mitigation, model, weights, key=key)
        sums = summed_loss(model, part, tap=tap)
        return sums.loss / sums.tokens.astype(sums.loss.dtype)

    def at(step: int, part: int = 0, seed: int = 4) -> float:
        return float(loss(dropout_key(MitigationSettings(seed=seed), step, part)))

    assert at(0) == pytest.approx(float(found.loss), rel=1e-12)
    assert len({at(0), at(1), at(0, 1), at(1, 1), at(0, seed=5)}) == 5


def test_where_nothing_is_trained_nothing_is_dropped(
    run_of_all: tuple[TrainingRun, Batch, Any],
) -> None:
    """The monitor looks at attention with the rest of them; a checkpoint is run without a tap."""
    run, batch, found = run_of_all
    part, weights = Batch(*(x[0] for x in batch)), run.state.weights
    model, dropping = holding(run.graph, weights), run.config.mitigation
    rest = replace(dropping, attention_dropout=0.0, residual_dropout=0.0)
    shown, expected = (
        watched_figures(model, part, {}, weights, weights, {}, m) for m in (dropping, rest)
    )
    assert jax.tree.all(jax.tree.map(partial(np.array_equal, equal_nan=True), shown, expected))
    assert float(shown.loss_mean) != pytest.approx(float(found.loss), rel=1e-4)


def test_the_share_that_is_dropped_and_what_is_kept() -> None:
    key = dropout_key(MitigationSettings(), 0, 0)
    ones = jnp.ones((200, 500))
    found = np.asarray(dropped(ones, key, 0.3))
    assert set(np.unique(found).tolist()) == {0.0, 1 / 0.7}
    assert found.mean() == pytest.approx(1, abs=5 * (0.3 / 0.7 / found.size) ** 0.5)
    narrow = np.asarray(dropped(ones.astype(jnp.bfloat16), key, 0.3))
    assert ((narrow == 0) == (found == 0)).all()


def test_qk_clip_takes_heads_to_tau_and_leaves_the_others(folder: Path) -> None:
    still, tau = {"learning_rate": 1e-12, "warmup": 0, "weight_decay": 0.0}, 8.0
    run, batch = begun(folder, {"qk_clip": tau}, optimiser=still)
    state, _, shown, _ = run.monitor.step(run.state, {}, batch)
    _, _, after, _ = run.monitor.step(state, {}, batch)
    before = shown.max_logit
    assert (before[0] > tau).any() and (before[0] < tau).any()
    # Deeper layers attend to what attention above them has changed.
    np.testing.assert_allclose(after.max_logit[0], np.minimum(before[0], tau), rtol=1e-6)
    pairs = {name: (weight, state.weights[name]) for name, weight in run.state.weights.items()}
    moved = {n for n, (a, b) in pairs.items() if not np.allclose(a, b, 1e-6, 1e-9)}
    assert moved == {"layers.self_attn.q_proj.weight"}
    parts = graded(*begun(folder, {"qk_clip": tau}, optimiser={"accumulate": 2}))
    (factors,) = parts.factors.values()
    whole = np.repeat(np.minimum(1, tau / before), 16, axis=1)
    np.testing.assert_allclose(factors[:, :, 0], whole, rtol=1e-12)


def test_what_is_not_finite_is_located_through_them(
    run_of_all: tuple[TrainingRun, Batch, Any],
) -> None:
    run, batch, _ = run_of_all
    name = QK_NORMS["q_proj"]

    def where(value: float) -> str:
        changed = run.state.weights[name].at[2, 0].set(value)
        weights = run.state.weights | {name: changed}
        return locate_nonfinite(run.graph, weights, batch, run.config.mitigation)

    assert where(float("nan")) == f"forward, first in the weights: {name} of layer 2"
    assert where(1e308) == "forward, first at layers.2.q_proj"  # as it was normed


def test_what_cannot_be_had_is_refused(folder: Path) -> None:
    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            TrainConfig.from_dict(settings(folder, **changed))

    refused("qk_norm, score_cap, logit_cap: what is trained is no Llama then", mitigation=ALL)
    refused("qk_norm takes their scale", mitigation={"qk_norm": True, "qk_clip": 9}, run=NO_MODEL)
    refused(
        r"residual_dropout = 1.0: expected a number from 0 to below 1",
        mitigation={"residual_dropout": 1.0},
    )
    run, batch = begun(folder, ALL)
    with pytest.raises(InputError, match="what was trained is no Llama, and no format"):
        run.export()
    model = holding(run.graph, run.state.weights)
    model.backend = "blockwise"
    with pytest.raises(InputError, match="attention_dropout, score_cap: attention backend 'block"):
        mitigated(run.config.mitigation, model, run.state.weights)
    some = {n: w for n, w in run.state.weights.items() if "q_proj" not in n}
    clip, part = MitigationSettings(qk_clip=100.0), Batch(*(x[0] for x in batch))
    with pytest.raises(InputError, match="which are not among the weights trained"):
        mitigated(clip, holding(run.graph, run.state.weights), some, shown=part.shown())
