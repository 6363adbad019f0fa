"""What can be made wrong in a reference: a tap's value, a weight, a gradient, the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.edits.edit import EVERYWHERE, Edit, Scope
from parity.inputs import Inputs
from parity.subjects.torch_reference.subject import TorchReference

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CacheWrites:
    """What a cache has been given, before any change: what it ought to hold.

    Attributes:
        sizes: columns of every call so far, this one included.
        valid: which columns of the whole scenario are real [B T].
        written: keys and values by layer [B S K H]; later layers lack this call's.
    """

    sizes: tuple[int, ...]
    valid: Tensor
    written: dict[int, tuple[Tensor, Tensor]]

    @property
    def start(self) -> int:
        """How many columns earlier calls have filled."""
        return sum(self.sizes[:-1])

    @property
    def stop(self) -> int:
        """How many columns are filled with this call."""
        return sum(self.sizes)


@dataclass(frozen=True)
class MutationSite:
    """Where a tap is computed.

    Attributes:
        reference: whose operators and weights may be used.
        layer: number of the layer, None outside.
        tap: the tap's name, without its layer.
        value: as computed so far.
        seen: the stage's earlier taps by short name; with a cache, `keys` and `values` hold
            what is attended to.
        cos, sin: of the call's positions [B T H/2]; empty outside of layers.
        mask: what the call's queries see [B T S].
        held: of the cache; None without one.
        given: what the call is given, by name; see `call_operands`.
    """

    reference: TorchReference
    layer: int | None
    tap: str
    value: Tensor
    seen: dict[str, Tensor]
    cos: Tensor
    sin: Tensor
    mask: Tensor
    held: CacheWrites | None = None
    given: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Mutation:
    """A tap or a weight that is not what it ought to be.

    Attributes:
        tap: short name of the tap that `value` computes; empty for a change of weights. `keys` and
            `values` are what a cache holds after a call: the change is given what it held before,
            changes included, with the call's own appended.
        value: what the faulty operator gives.
        layers: in which layers; None for all.
        rounds: whether it rounds what the reference does not: its honest variants then include two
            whose values are nudged before, so that ties may fall to either side.
        weight: what a faulty reader makes of the weight of a name, given a way to read any;
            returns None for the weights that it leaves alone.
        pulled: what becomes of the gradient that reaches the tap from all that is computed of it.
        loss: what is differentiated, of logits [B T V] and the scenario.
        edits: of the tap's program, in place of `value`.
        scope: where the edits hold.
    """

    tap: str = ""
    value: Callable[[MutationSite], Tensor] | None = None
    layers: frozenset[int] | None = None
    weight: Callable[[str, Callable[[str], Tensor]], Tensor | None] | None = None
    rounds: bool = False
    pulled: Operator | None = None
    loss: Callable[[Tensor, Inputs], Tensor] | None = None
    edits: tuple[Edit, ...] = ()
    scope: Scope = EVERYWHERE

    def within(self, layer: int) -> Mutation:
        """Return the same change in one layer alone."""
        return replace(self, layers=frozenset({layer}))


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Operator, backward: Operator) -> Tensor:
        ctx.backward_of = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.backward_of(gradients[0]), None, None


def with_gradient(x: Tensor, forward: Operator, backward: Operator) -> Tensor:
    """Return forward(x), whose gradient in x is `backward` of the one that reaches it."""
    found: Tensor = _Differentiated.apply(x, forward, backward)
    return found


def change_gradient(value: Tensor, change: Operator) -> Tensor:
    """Return the same value, whose gradient is what `change` makes of the one that reaches it."""
    return with_gradient(value, lambda x: x.view_as(x), change)


def stop_gradient(value: Tensor) -> Tensor:
    """Return the same value, of which autograd sees nothing that leads to it."""
    return change_gradient(value, torch.zeros_like)
