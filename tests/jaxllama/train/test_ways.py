"""Layers computed again, batches in parts: the same step, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import config

from jaxllama.loss import next_token_loss
from jaxllama.train import TrainingRun, step
from jaxllama.train.step import SummedLoss, loss_and_gradients


def gradients(folder: Path, **changed: Any) -> tuple[float, int, dict[str, np.ndarray], Any]:
    """Return the loss, tokens and gradients of a run's first batch, in float64, and the run."""
    double = {"dtype": "f64", "param_dtype": "f64"}
    changed["model"] = double | changed.get("model", {})
    run = TrainingRun(config(folder, **changed))
    batch = run.on_devices(next(run.batches))
    value, count, found, _ = jax.jit(lambda w, b: loss_and_gradients(run.graph, w, {}, b))(
        run.state.weights, batch
    )
    return float(value), int(count), {n: np.asarray(g) for n, g in found.items()}, (run, batch)


Taken = tuple[float, int, dict[str, np.ndarray], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ways")


# Not packed, rows have other numbers of pads: a mean of means would show.
ROWS = {"data": {"packing": False, "length": 90, "seed": 3}}


@pytest.fixture(scope="module")
def plain(folder: Path) -> Taken:
    return gradients(folder, **ROWS)


def apart(first: Taken, second: Taken) -> float:
    pairs = [(first[2][name], second[2][name]) for name in first[2]]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def test_a_layer_computed_again_has_the_same_gradients(plain: Taken, folder: Path) -> None:
    again = gradients(folder, model={"remat": True}, **ROWS)
    assert again[:2] == (pytest.approx(plain[0], rel=1e-13), plain[1])
    assert apart(plain, again) < 1e-11


def test_layers_are_computed_again(plain: Taken, folder: Path) -> None:
    def kept(run: TrainingRun, batch: Any) -> int:
        def loss(weights: Any) -> Any:
            return loss_and_gradients(run.graph, weights, {}, batch)[0]

        lowered = jax.jit(lambda w: loss_and_gradients(run.graph, w, {}, batch)[2]).lower(
            run.state.weights
        )
        stats = lowered.compile().memory_analysis()
        return int(stats.temp_size_in_bytes)

    again = gradients(folder, model={"remat": True}, **ROWS)
    assert kept(*again[3]) < 0.6 * kept(*plain[3])


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_same_step(parts: int, plain: Taken, folder: Path) -> None:
    cut = gradients(folder, optimiser={"accumulate": parts}, **ROWS)
    assert cut[3][1].tokens.shape[0] == parts
    assert cut[:2] == (pytest.approx(plain[0], rel=1e-12), plain[1])
    assert apart(plain, cut) < 1e-10


def test_a_mean_of_means_would_be_found(
    plain: Taken, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean(model: Any, batch: Any, **_: Any) -> Any:
        logits, _ = model(batch.tokens, positions=batch.positions, mask=batch.mask())
        loss = next_token_loss(logits, batch.tokens, valid=batch.valid, segments=batch.segments)
        return SummedLoss(loss, jnp.zeros_like(loss), jnp.int32(1))

    monkeypatch.setattr(step, "summed_loss", mean)
    cut = gradients(folder, optimiser={"accumulate": 4}, **ROWS)
    assert cut[0] != pytest.approx(plain[0], rel=1e-4)
