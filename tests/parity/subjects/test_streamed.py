"""--stream: the same findings as without, and never more in memory than a stage."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import LAYERS, changed, inputs_for, small

from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.checkpoint.load import load_part
from jaxllama.checkpoint.samples import in_memory
from jaxllama.errors import CheckpointError, InputError
from parity.result import Result
from parity.runner import run
from parity.subjects.jaxllama import streamed as streaming
from parity.subjects.jaxllama.run import run_layer
from parity.subjects.jaxllama.streamed import NOTE, Streamed, frugal_layer
from parity.subjects.jaxllama.subject import JaxLlama

DEEP = 7


@pytest.fixture(scope="module")
def deep() -> Checkpoint:
    """A checkpoint so deep that a stage is a small part of it: three layers, over and over."""
    base = small()
    weights = {name: base.read(name) for name in base.tensors}
    for i in range(DEEP):
        for name in base.tensors:
            if name.startswith(f"model.layers.{i % LAYERS}."):
                weights[name.replace(f".{i % LAYERS}.", f".{i}.", 1)] = base.read(name)
    return in_memory(base.config.replace(num_hidden_layers=DEEP), weights)


def quick(checkpoint: Checkpoint, **options: Any) -> Result:
    settings: dict[str, Any] = {"dtypes": "f64", "scenarios": "right_padded", "length": 8}
    return run.run(checkpoint, **(settings | options))


def test_streaming_finds_what_a_run_of_the_whole_model_finds(deep: Checkpoint) -> None:
    whole, streamed = quick(deep, modes=streaming.MODES), quick(deep, stream=True)
    assert streamed.not_run[:2] == ("decode", "gradients")
    rows = [row for row in whole.rows if row.mode != "production"]
    assert streamed.rows == rows and streamed.verdict == "equal"
    assert streamed.compared == streamed.expected
    assert NOTE in streamed.notes and "stream=True" in streamed.command
    assert NOTE not in whole.notes


def test_no_more_than_one_stage_is_held(deep: Checkpoint) -> None:
    """Weights in JAX arrays, counted, beside those of the model loaded whole."""

    def held() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    gc.freeze()  # what other tests left need not be looked through at every step
    inputs = inputs_for(deep, "right_padded", 8)
    sizes = {n: info.nbytes for n, info in deep.tensors.items()}
    layer = sum(size for n, size in sizes.items() if n.startswith("model.layers.1."))
    largest = max(layer, sizes["model.embed_tokens.weight"])
    before = held()
    subjects = [Streamed(deep, dtype) for dtype in ("f32", "bf16")]
    runs = [subject.start(inputs) for subject in subjects for _ in range(2)]
    most = 0
    for _ in range(DEEP + 2):
        for each in runs:
            each.step()
            most = max(most, held() - before)
    slack = largest / 2  # residual streams, masks
    assert layer < most < largest + slack < sum(sizes.values()) / 3
    del runs, each, subjects
    before = held()
    model = load_model(deep, dtype="float32")  # the negative control
    assert held() - before > largest + slack and model is not None
    gc.unfreeze()


def test_every_tensor_is_read_once_for_all_runs(deep: Checkpoint) -> None:
    reads: list[str] = []

    def read(name: str) -> np.ndarray:
        reads.append(name)
        return deep.read(name)

    inputs = inputs_for(deep, "right_padded", 8)
    watched = replace(deep, reader=read)
    subjects = [Streamed(watched, dtype) for dtype in ("f32", "bf16")]
    assert not reads
    runs = [subject.start(inputs) for subject in subjects for _ in range(2)]
    for _ in range(DEEP + 2):
        for each in runs:
            each.step()
    assert sorted(reads) == sorted(deep.tensors)


def test_a_layer_is_not_widened_whole() -> None:
    """XLA's own schedule, the control, holds all of a layer's weights in float32 at once."""
    config = small().config
    part = load_part(small(), 1, dtype="float32", param_dtype="bfloat16")
    x = jnp.zeros((1, 4, config.hidden_size))
    cos_sin = (jnp.zeros((1, 4, config.head_dim // 2)),) * 2
    mask = jnp.ones((1, 4, 4), bool)

    def temporary(step: Any) -> int:
        compiled = step.lower(part, 0, x, cos_sin, mask, None, {}, "xla").compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert frugal_layer() is not run_layer
    assert temporary(frugal_layer()) < temporary(run_layer) / 2


def test_without_the_option_a_layer_is_run_as_xla_will(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_FRUGAL", {"xla_cpu_no_such_option": "1"})
    assert frugal_layer.__wrapped__() is run_layer


def test_a_fault_in_one_layer_is_located(deep: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][3, 4] += 0.5

    wrong = changed(deep, spoil)

    class Spoilt(Streamed):
        def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
            super().__init__(wrong, dtype)

    monkeypatch.setattr(run.streamed, "Streamed", Spoilt)
    result = quick(deep, stream=True)
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.2.up_proj"
    assert result.first_divergence.kind == "operator"


def test_a_tied_head_is_the_embedding() -> None:
    assert quick(small(tied=True), stream=True, dtypes=None, modes="free").verdict == "equal"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": "grad"}, "modes='grad'"),
        ({"modes": "free,decode"}, "modes='decode'"),
        ({"reference": "torch,hf"}, "reference='hf'"),
        ({"subject": JaxLlama}, "leave out subject"),
    ],
)
def test_what_needs_whole_models_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(small(), stream=True, **options)


def test_bad_checkpoints_are_refused() -> None:
    def lose(weights: dict[str, np.ndarray]) -> None:
        del weights["model.layers.1.mlp.up_proj.weight"]

    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan

    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: missing"):
        Streamed(changed(small(), lose), "f32")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        load_part(changed(small(), spoil), 1, dtype="float32", param_dtype="float32")
    with pytest.raises(InputError, match="layer 3: expected 0 to 2"):
        load_part(small(), 3, dtype="float32", param_dtype="float32")
