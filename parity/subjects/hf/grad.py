"""Gradients of transformers' model, by one backward pass over all of it.

Shapes: B batch, T tokens, D model dim, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.torch.arrays import to_numpy, to_torch
from parity.subjects.torch_reference.loss import next_token_loss
from parity.taps import split_name


def by_stage(model: Any, inputs: Inputs, mask: Tensor) -> Iterator[Arrays]:
    """Differentiate the whole model, then hand its gradients over stage by stage, keeping none.

    Args:
        model: a `LlamaForCausalLM`.
        inputs: the scenario.
        mask: what it is told of the mask.

    Yields:
        The loss, the parameters' gradients and those of the layers' inputs.
    """
    streams: list[Tensor] = []
    # Where the pad's id stands for a token, its row has a gradient like any other's; with this set
    # PyTorch leaves it at zero.
    model.model.embed_tokens.padding_idx = None

    def keep(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        arguments[0].retain_grad()
        streams.append(arguments[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.model.layers]
    try:
        with torch.enable_grad():
            logits = model(
                to_torch(inputs.tokens.astype(np.int64)),
                attention_mask=mask,
                position_ids=to_torch(inputs.positions.astype(np.int64)),
                use_cache=False,
            ).logits
            loss = next_token_loss(logits, inputs)
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    parameters = dict(model.named_parameters())
    yield {"loss": to_numpy(loss)} | _taken(parameters, None, "model.norm.weight", "lm_head.weight")
    for index in reversed(range(len(streams))):
        gradient = streams.pop().grad
        assert gradient is not None
        own = {f"grad.layers.{index}.input": to_numpy(gradient)}
        yield own | _taken(parameters, index)
    yield _taken(parameters, None, "model.embed_tokens.weight")


def _taken(parameters: dict[str, nn.Parameter], layer: int | None, *names: str) -> Arrays:
    """Take the gradients of a layer's parameters, or of `names`, off the model."""
    if layer is not None:
        names = tuple(name for name in parameters if split_name(f"grad.{name}")[1] == layer)
    found = {}
    for name in names:
        if name in parameters:
            gradient = parameters[name].grad
            assert gradient is not None, name
            found[f"grad.{name}"] = to_numpy(gradient)
            parameters[name].grad = None
    return found
