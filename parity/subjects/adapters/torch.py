"""PyTorch modules under somebody else's names: their arrays, and autograd asked about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.subjects.adapters.framework import Gradients, LossOf
from parity.subjects.adapters.layouts import Tap
from parity.subjects.torch.arrays import to_numpy, to_torch
from parity.subjects.torch_reference.loss import next_token_loss

NO_GRAPH = (
    "parameters: the loss depends on no parameter: call= or loss= runs under torch.no_grad() or "
    "torch.inference_mode(), or detaches; leave that out, forward passes are run without gradients "
    "anyway"
)


class Torch:
    """See `parity.subjects.adapters.framework.Framework`."""

    method = "forward"
    transparent: Sequence[tuple[Any, str]] = ()

    def settings(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def to_numpy(self, value: Tensor) -> np.ndarray:
        return to_numpy(value)

    def like(self, array: np.ndarray, value: Tensor) -> Tensor:
        # A copy: a module that works in place would write into the reference's own memory.
        return to_torch(np.ascontiguousarray(array)).to(value.dtype, copy=True)

    def identity(self, module: Any) -> None:
        return None  # a module is itself wherever it runs

    def dtypes(self, module: nn.Module) -> Collection[str]:
        held = {one.dtype for one in module.parameters() if one.is_floating_point()}
        return {str(dtype).removeprefix("torch.") for dtype in held}

    def permute(self, value: Tensor, order: list[int]) -> Tensor:
        return value.permute(order)

    def parameters(self, module: nn.Module) -> Collection[str]:
        return dict(module.named_parameters())

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        return next_token_loss(logits, inputs)

    def gradients(self, module: nn.Module, names: Sequence[str], loss_of: LossOf) -> Gradients:
        kept: list[tuple[Tap, Tensor]] = []

        def keep(tap: Tap, value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value
            if not value.requires_grad and tap.name == "logits":
                raise InputError(NO_GRAPH)
            if not value.requires_grad:  # cut off from the parameters, if not from the loss
                value = value.detach().requires_grad_()
            value.retain_grad()
            kept.append((tap, value))
            return value.clone()  # what works in place would turn it into another

        parameters = dict(module.named_parameters())
        with _prepared(module, [parameters[name] for name in names]), torch.enable_grad():
            loss = loss_of(module, keep)
            if not (isinstance(loss, Tensor) and loss.requires_grad):
                raise InputError(NO_GRAPH)
            loss.backward()  # as in training, with whatever hooks there are
            return Gradients(
                loss.detach(),
                {name: _gradient(parameters[name]) for name in names},
                [(tap, _gradient(value)) for tap, value in kept],
            )


def _gradient(value: Tensor) -> Tensor:
    """Return a tensor's gradient; 0 where the loss does not depend on it."""
    return torch.zeros_like(value) if value.grad is None else value.grad


@contextmanager
def _prepared(module: nn.Module, wanted: list[nn.Parameter]) -> Iterator[None]:
    """Let a module be differentiated by its parameters, then give it back as it was."""
    before = [(one, one.grad, one.requires_grad) for one in module.parameters()]
    for one, _, _ in before:
        one.grad = None
    for one in wanted:
        one.requires_grad_()
    try:
        yield
    finally:
        for one, gradient, required in before:
            one.grad = gradient
            one.requires_grad_(required)
