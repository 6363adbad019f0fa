"""Training on meshes of eight devices: the step of one device, and states that lie cut."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from trainings import config

from jaxllama.train import TrainConfig, TrainingRun, train

STEPS = 3
CHANGED = {"run": {"steps": STEPS}, "data": {"batch": 8, "length": 24}}
DOUBLE = {"dtype": "f64", "param_dtype": "f64"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, ...]:
    folder = tmp_path_factory.mktemp("alone")
    return train(config(folder, model=DOUBLE, **CHANGED)).losses


@pytest.mark.parametrize("mesh", ["data=8", "tensor=2,fsdp=2,data=2"])
def test_a_mesh_has_the_losses_of_one_device(
    mesh: str, alone: tuple[float, ...], tmp_path: Path
) -> None:
    on_mesh = train(config(tmp_path, model=DOUBLE | {"mesh": mesh}, **CHANGED))
    assert on_mesh.losses == pytest.approx(alone, rel=1e-10)


LORA = {"rank": 3, "targets": ["q_proj", "k_proj", "o_proj", "down_proj"]}


def test_factors_lie_as_their_weights_and_have_the_losses_of_one_device(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changed = CHANGED | {"lora": LORA, "run": {"steps": 2}, "optimiser": {"warmup": 0}}
    one = train(config(tmp_path / "a", model=DOUBLE, **changed))
    given = config(tmp_path / "b", model=DOUBLE | {"mesh": "fsdp=4,tensor=2"}, **changed)
    run = TrainingRun(given)
    (adam,) = [part for part in run.state.optimiser if hasattr(part, "mu")]
    for held in (run.state.weights, adam.mu):
        a, b = (held[f"layers.self_attn.q_proj.{part}"] for part in ("lora_A", "lora_B"))
        assert a.sharding.shard_shape(a.shape) == (5, 3, 96 // 4)
        assert b.sharding.shard_shape(b.shape) == (5, 96 // 2, 3)
    cut = run.finish(False, lambda _: None)
    assert cut.losses == pytest.approx(one.losses, rel=1e-10)
    stored = [load_file(done.model / "adapter_model.safetensors") for done in (one, cut)]
    assert stored[0].keys() == stored[1].keys()
    # The optimiser divides gradients near zero by themselves.
    assert all(np.abs(stored[0][name] - stored[1][name]).max() < 1e-6 for name in stored[0])


def test_weights_and_means_lie_cut_before_and_after_a_step(tmp_path: Path) -> None:
    given = config(tmp_path, model={"mesh": "fsdp=4,tensor=2", "remat": True}, **CHANGED)
    run = TrainingRun(given)

    def check(run: TrainingRun) -> None:
        name = "layers.mlp.up_proj.weight"
        (adam,) = [one for one in run.state.optimiser if hasattr(one, "mu")]
        for array in (run.state.weights[name], adam.mu[name], adam.nu[name]):
            assert array.sharding.shard_shape(array.shape) == (5, 136 // 2, 96 // 4)

    check(run)
    run.step(run.on_devices(next(run.batches)))
    check(run)


def test_a_run_on_a_mesh_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def given(name: str, steps: int) -> TrainConfig:
        changed = CHANGED | {"run": {"steps": steps}, "optimiser": {"warmup": 0}}
        return config(tmp_path / name, model={"mesh": "fsdp=4,tensor=2"}, **changed)

    whole = train(given("a", 4))
    first = train(given("b", 2))
    rest = train(given("b", 4), resume=True)
    assert first.losses + rest.losses == whole.losses
    assert np.isfinite(whole.losses).all() and jax.device_count() == 8


def test_a_mesh_drops_what_one_device_does(tmp_path: Path) -> None:
    def losses(mesh: dict[str, str]) -> tuple[float, ...]:
        folder = tmp_path / str(len(mesh))
        folder.mkdir()
        off = {"attention_dropout": 0.2, "residual_dropout": 0.1, "qk_norm": True}
        changed = CHANGED | {"run": {"steps": 2, "export": False}, "optimiser": {"warmup": 0}}
        return train(config(folder, model=DOUBLE | mesh, mitigation=off, **changed)).losses

    alone = losses({})
    assert losses({"mesh": "data=1,tensor=2"}) == pytest.approx(alone, rel=1e-10)
