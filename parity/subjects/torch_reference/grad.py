"""Gradients of the reference by PyTorch's autograd, stage by stage.

Shapes: B batch, T tokens, D model dim, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.torch.arrays import Recorder, View, to_numpy, to_torch
from parity.subjects.torch.weights import Weights
from parity.subjects.torch_reference.model import TorchModel

EMBEDDING = "model.embed_tokens.weight"


class Leaves:
    """Weights as leaves of autograd, in the run's dtype; each is made when first asked for."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self.made: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.made:
            self.made[name] = self._weights[name].to(self._dtype).detach().requires_grad_()
        return self.made[name]


class Watching(Recorder):
    """Keeps the tensors themselves, for autograd to be asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {}

    def __call__(
        self, name: str, value: Tensor, canonical: View | None = None, native: View | None = None
    ) -> Tensor:
        self.tensors[name] = value
        return value


@dataclass
class _Stage:
    """A stage being differentiated: its weights as leaves, its taps, and its input."""

    leaves: Leaves
    taps: Watching
    x: Tensor

    def gradients(self, output: Tensor, pulled: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the gradients of weights and taps by name, and the input's."""
        wanted = self.leaves.made | self.taps.tensors
        sources = [*wanted.values(), self.x]
        if not output.requires_grad:  # all that leads to it is detached
            *found, x = map(torch.zeros_like, sources)
        else:
            *found, x = torch.autograd.grad(
                output, sources, pulled, materialize_grads=True, allow_unused=True
            )
        return dict(zip(wanted, found, strict=True)), x


def by_stage(reference: TorchModel, inputs: Inputs) -> Iterator[Arrays]:
    """Differentiate the reference from its loss down to its embedding.

    The stream into each stage is kept from a pass without gradients, and each stage is run again
    to be differentiated: one layer's weights and gradients are alive at a time.

    Yields:
        Gradients under canonical names, as `parity.subjects.base.DifferentiableSubject` orders
        them.
    """
    layers = reference.config.num_hidden_layers
    ids = to_torch(inputs.tokens.astype(np.int64))
    positions, mask = to_torch(inputs.positions.copy()), to_torch(inputs.mask.copy())
    with torch.no_grad():
        x, around = reference.setup(ids, positions, mask, None, Watching())
        streams = [x]
        for index in range(layers):
            streams.append(reference.layer(index, streams[-1], around, Watching()))

    stage = _begin(reference, streams.pop())
    with _borrowing(reference, stage.leaves):
        loss = reference.loss(reference.head(stage.x, stage.taps), inputs)
    found, pulled = stage.gradients(loss, None)
    tied = found.pop(EMBEDDING, None)
    del stage
    yield {"loss": to_numpy(loss)} | _named(found, "grad.")
    for index in reversed(range(layers)):
        stage = _begin(reference, streams.pop())
        with _borrowing(reference, stage.leaves):
            output = reference.layer(index, stage.x, around, stage.taps)
        found, pulled = stage.gradients(output, pulled)
        found["input"] = pulled  # the tap's own would leave out what lies before the tap
        del stage, output
        yield _named(found, f"grad.layers.{index}.")
    stage = _begin(reference, pulled)
    with _borrowing(reference, stage.leaves):
        output, _ = reference.setup(ids, positions, mask, None, stage.taps)
    stage.taps.tensors = {"embed": stage.taps.tensors["embed"]}
    found, _ = stage.gradients(output, pulled)
    if tied is not None:
        found[EMBEDDING] = found[EMBEDDING] + tied
    yield _named(found, "grad.")


def _begin(reference: TorchModel, x: Tensor) -> _Stage:
    leaves = Leaves(reference.weights, reference.compute)
    return _Stage(leaves, Watching(), x.detach().requires_grad_())


def _named(found: dict[str, Tensor], prefix: str) -> Arrays:
    """Return gradients under their names: a parameter's is its own, a tap gets the prefix."""
    return {
        (f"grad.{name}" if name.endswith(".weight") else prefix + name): to_numpy(gradient)
        for name, gradient in found.items()
    }


@contextmanager
def _borrowing(reference: TorchModel, leaves: Leaves) -> Iterator[None]:
    """Let a reference run on leaves, with gradients, and give it its own weights back."""
    own, reference.weights = reference.weights, leaves
    try:
        with torch.enable_grad():
            yield
    finally:
        reference.weights = own
