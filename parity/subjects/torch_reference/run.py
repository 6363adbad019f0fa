"""Driving the reference stage by stage, with or without a key-value cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from parity.inputs import Inputs
from parity.subjects.base import Arrays, chunk_ranges, in_stage_order, no_stage_left
from parity.subjects.torch.arrays import Recorder, View, to_numpy, to_torch
from parity.subjects.torch_reference.model import LayerContext, TorchModel


class TorchRun:
    """One pass of a `TorchModel`; see `parity.subjects.base.Run`.

    Args:
        reference: whose operators are run.
        inputs: the scenario.
        chunks: columns per call through a cache; None is one call without a cache.
    """

    def __init__(
        self, reference: TorchModel, inputs: Inputs, chunks: Sequence[int] | None = None
    ) -> None:
        self._reference = reference
        self._inputs = inputs
        whole = [(0, inputs.tokens.shape[1])]
        self._ranges = whole if chunks is None else chunk_ranges(inputs, chunks)
        self._cache: dict[int, tuple[Tensor, Tensor]] | None = None if chunks is None else {}
        self._step = 0
        self._x: Tensor
        self._around: LayerContext

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """Compute the next stage and return its taps."""
        layers = self._reference.config.num_hidden_layers
        call, stage = divmod(self._step, layers + 2)
        if call == len(self._ranges):
            raise no_stage_left()
        self._step += 1
        doubled = self._reference.variant == "doubled"
        prefix = f"layers.{stage - 1}." if 1 <= stage <= layers else ""
        tap = (DoubledRecorder if doubled else Recorder)(force, prefix)
        with torch.no_grad():
            if stage == 0:
                start, stop = self._ranges[call]
                self._embed(start, stop, tap)
            elif stage <= layers:
                self._x = self._reference.layer(stage - 1, self._x, self._around, tap)
                self._show_cache(stage - 1, tap)
            else:
                self._reference.head(self._x, tap)
        return in_stage_order(tap.values, stage, layers)

    def _embed(self, start: int, stop: int, tap: Recorder) -> None:
        reference = self._reference
        tokens = self._batch(self._inputs.tokens[:, start:stop].astype(np.int64))
        positions = self._batch(self._inputs.positions[:, start:stop])
        mask = self._batch(self._inputs.mask[:, start:stop, :stop])
        self._x, self._around = reference.setup(tokens, positions, mask, self._cache, tap)

    def _batch(self, array: np.ndarray) -> Tensor:
        tensor = to_torch(np.array(array))
        return _twice(tensor) if self._reference.variant == "doubled" else tensor

    def _show_cache(self, layer: int, tap: Recorder) -> None:
        if self._cache is not None:
            half = len(self._inputs.tokens)
            for name, held in zip("kv", self._cache[layer], strict=True):
                tap.values[f"cache.{layer}.{name}"] = to_numpy(held[:half])


class DoubledRecorder(Recorder):
    """Records the first half of a batch that was run beside a copy of itself."""

    def __call__(
        self, name: str, value: Tensor, canonical: View | None = None, native: View | None = None
    ) -> Tensor:
        if name == "rope.inv_freq":  # the one tap without a batch axis
            return super().__call__(name, value, canonical, native)
        return super().__call__(name, value, _half, _twice)


def _half(x: Tensor) -> Tensor:
    return x[: len(x) // 2]


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
