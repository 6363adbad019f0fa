"""Models made to fail in one place: by their weights, or by what one of their layers computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllama.checkpoint import Checkpoint, in_memory, load_model
from jaxllama.checkpoint.samples import tiny
from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.jaxllama.run import JaxRun
from parity.subjects.jaxllama.subject import JaxLlama

Edit = Callable[[np.ndarray], np.ndarray]


def scaled(
    factor: float, *parts: str, layer: int, rows: slice = slice(None), of: Checkpoint | None = None
) -> Checkpoint:
    """Return a checkpoint with some weights of one layer multiplied, such as `self_attn.q_proj`.

    Args:
        factor: on them.
        parts: of the layer.
        layer: which.
        rows: of each weight.
        of: what is changed; `tiny` if none.
    """
    whole = of or tiny()
    weights = {name: whole.read(name).copy() for name in whole.tensors}
    for part in parts:
        weights[f"model.layers.{layer}.{part}.weight"][rows] *= np.float32(factor)
    return in_memory(whole.config, weights, companions=companions(whole))


def overflowing(layer: int) -> Checkpoint:
    """Return a checkpoint whose gradients are not finite in a layer, and its forward pass is.

    What the layer's huge weights are multiplied by is 0.
    """
    spoilt = scaled(1e38, "mlp.down_proj", layer=layer, of=scaled(0, "mlp.up_proj", layer=layer))
    weights = {name: spoilt.read(name) for name in spoilt.tensors}
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(1000)
    return in_memory(spoilt.config, weights, companions=companions(spoilt))


def companions(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """Return a checkpoint's tokenizer files by name."""
    return {name: read() for name, read in checkpoint.companions.items()}


class Edited:
    """A model in one or more places of which something else is computed than should be.

    Args:
        edits: by full tap name, what its value becomes; the pass goes on with that.
        of: the model; `tiny` if none.
    """

    name, dtype, internal_dtype = "edited", "f32", "f32"
    absent: frozenset[str] = frozenset()
    can_force = False

    def __init__(self, edits: Mapping[str, Edit], of: Checkpoint | None = None) -> None:
        self._subject = JaxLlama(load_model(of or tiny(), dtype="float32"), "f32")
        self._edits = edits

    def start(self, inputs: Inputs) -> EditedRun:
        return EditedRun(self._subject, inputs, self._edits)


class EditedRun:
    """Each stage is run once to be looked at, and once with the edited values in their places."""

    def __init__(self, subject: JaxLlama, inputs: Inputs, edits: Mapping[str, Edit]) -> None:
        self._run, self._edits = JaxRun(subject.model, inputs, None), edits

    def step(self, force: Any = None) -> Arrays:
        before = dict(vars(self._run))
        shown = self._run.step()
        forced = {n: edit(shown[n]) for n, edit in self._edits.items() if n in shown}
        if not forced:
            return shown
        vars(self._run).update(before)
        output = [name for name in forced if name.endswith(".output")]
        again = self._run.step({n: v for n, v in forced.items() if n not in output}) | forced
        for name in output:
            self._run._x = np.asarray(forced[name])
        return again


def one_vector(values: np.ndarray) -> np.ndarray:
    """Give all tokens the first one's values [B, T, K, H]."""
    return np.broadcast_to(values[:, :1], values.shape).copy()


def on_column(head: int, column: int) -> Edit:
    """Fix one head of [B, N, T, S] on a column, as far as a query sees it."""

    def edit(weights: np.ndarray) -> np.ndarray:
        changed = weights.copy()
        changed[:, head, column:] = 0
        changed[:, head, column:, column] = 1
        return changed

    return edit


def leaking(head: int, query: int, key: int, weight: float = 0.02) -> Edit:
    """Give one query of one head of [B, N, T, S] some weight on a later key."""

    def edit(weights: np.ndarray) -> np.ndarray:
        changed = weights.copy()
        changed[:, head, query] *= 1 - weight
        changed[:, head, query, key] += weight
        return changed

    return edit


def times(factor: float) -> Edit:
    """Multiply a value."""
    return lambda value: value * value.dtype.type(factor)
