"""Our own Llama in eager PyTorch as a subject."""

from __future__ import annotations

from collections.abc import Sequence

from parity.inputs import Inputs
from parity.subjects.base import GeneratedRun, Run
from parity.subjects.torch.weights import weights_for_decode, weights_for_pass
from parity.subjects.torch_reference.grad import by_stage
from parity.subjects.torch_reference.model import TorchModel
from parity.subjects.torch_reference.run import TorchRun


class TorchReference(TorchModel):
    """The reference model, as what can be run; its arguments are `TorchModel`'s."""

    can_force = True

    def start(self, inputs: Inputs) -> Run:
        """Begin a forward pass; see `parity.subjects.base.Subject`."""
        self.weights = weights_for_pass(self._checkpoint, self.compute)
        return TorchRun(self, inputs)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        """Begin to feed the inputs through a cache; see `parity.subjects.base.CachedSubject`."""
        self.weights = weights_for_decode(self._checkpoint, self.compute)
        return TorchRun(self, inputs, chunks)

    def start_grad(self, inputs: Inputs) -> Run:
        """Begin a backward pass; see `parity.subjects.base.DifferentiableSubject`."""
        return GeneratedRun(by_stage(self, inputs))
