"""Tiny checkpoints for the witnesses, and what their tests do with runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.checkpoint.samples import in_memory, tiny
from jaxllama.config import RopeScaling
from parity.inputs import Inputs
from parity.scenarios import scenario
from parity.subjects.base import Arrays, Run, Subject
from parity.taps import AXES, split_name

LAYERS = 3
LINEAR = RopeScaling(kind="linear", factor=2.5)
LLAMA3 = tiny().config.rope_scaling

MHA, MQA, GQA = (6, 6), (6, 1), (6, 2)


def small(
    heads: tuple[int, int] = GQA,
    *,
    seed: int = 0,
    tied: bool = False,
    scaling: RopeScaling | None = LLAMA3,
    dtype: str = "float32",
    layers: int = LAYERS,
    **overrides: Any,
) -> Checkpoint:
    """Return the `tiny` sample with fewer layers and choices of the matrix."""
    return tiny(
        seed,
        dtype,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=tied,
        rope_scaling=scaling,
        **overrides,
    )


def changed(checkpoint: Checkpoint, change: Callable[[dict[str, np.ndarray]], None]) -> Checkpoint:
    """Return a copy of a checkpoint whose weights have been tampered with."""
    weights = {name: checkpoint.read(name).copy() for name in checkpoint.tensors}
    change(weights)
    return in_memory(checkpoint.config, weights)


def swap(a: str, b: str) -> Callable[[dict[str, np.ndarray]], None]:
    """Return a change that exchanges two weights."""

    def change(weights: dict[str, np.ndarray]) -> None:
        weights[a], weights[b] = weights[b], weights[a]

    return change


def on_disk(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """Write a checkpoint as a Hugging Face directory, by other means than jaxllama's writer."""
    (directory / "config.json").write_text(json.dumps(dict(checkpoint.hf_config)))
    weights = {name: checkpoint.read(name) for name in checkpoint.tensors}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(directory)


def inputs_for(checkpoint: Checkpoint, name: str, length: int | None = 23) -> Inputs:
    """Return a scenario over the bytes of the built-in text."""
    return scenario(name, lambda text: list(text.encode()), checkpoint.config, length=length)


def steps(run: Run, count: int = LAYERS + 2) -> Arrays:
    """Return the taps of `count` stages together."""
    values: Arrays = {}
    for _ in range(count):
        values |= run.step()
    return values


def whole(subject: Subject, inputs: Inputs) -> Arrays:
    """Return every tap of a forward pass."""
    return steps(subject.start(inputs))


def live(name: str, array: np.ndarray, inputs: Inputs, start: int = 0) -> np.ndarray:
    """Return a tap's cells that carry meaning, as float64: no pads, no hidden keys.

    Args:
        name: of the tap.
        array: its full array, over the columns from `start`.
        inputs: the scenario.
        start: the first query column.
    """
    axes = AXES[split_name(name)[0]]
    array = np.asarray(array).astype(np.float64)
    if "B" not in axes:
        return array
    start = start if "T" in axes else 0  # caches are shown whole
    stop = start + array.shape[axes.index("T" if "T" in axes else "S")]
    if axes == "BNTS":
        mask = inputs.mask[:, None, start:stop, :stop]
        return array[np.broadcast_to(mask, array.shape)]
    return array[inputs.valid[:, start:stop]]


def gaps(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], inputs: Inputs) -> Arrays:
    """Return for each tap the largest difference over live cells, relative to the largest value.

    Tap names and shapes must be the same; a value that is not finite is an infinite gap.
    """
    assert list(a) == list(b)
    found = {}
    for name in a:
        assert a[name].shape == b[name].shape, name
        x, y = live(name, a[name], inputs), live(name, b[name], inputs)
        gap = np.abs(x - y).max(initial=0) / np.abs(x).max(initial=1e-300)
        found[name] = gap if np.isfinite(gap) else np.asarray(np.inf)
    return found


def worst(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], inputs: Inputs) -> float:
    """Return the largest of `gaps`."""
    return float(max(gaps(a, b, inputs).values()))


def first_apart(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], inputs: Inputs, limit: float
) -> str | None:
    """Return the first tap in data-flow order that differs by more than `limit`."""
    return next((name for name, gap in gaps(a, b, inputs).items() if gap > limit), None)
