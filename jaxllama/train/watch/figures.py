"""Figures of a step, inside its compiled program: of attention, gradients, updates and losses.

Shapes: B rows, N heads, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxllama.health.figures import entropy, largest_logit, rank_residual
from jaxllama.loss import successors, token_losses
from jaxllama.model import Llama
from jaxllama.taps import Tapper, Untapped, Values
from jaxllama.train.config import MitigationSettings
from jaxllama.train.lora import relative_update
from jaxllama.train.mitigation import mitigated
from jaxllama.train.step import NO_MITIGATION, Batch
from jaxllama.train.weights import FACTOR_A, FACTOR_B, Weights


class WatchedFigures(NamedTuple):
    """What is read of a step; NaN where it cannot be said.

    Attributes:
        entropy: of each head, the lowest of the rows: 0 peaked, 1 uniform.
        max_logit: the largest scaled score of each head.
        residual: of each layer's states, the lowest of the rows: 0 all tokens are one vector.
        gradient: norms by kind of weight, of each layer or of what is no layer's.
        update_ratio: norms of the updates over those of the weights, likewise; where factors are
            trained, of what they add to a weight, over its own.
        loss_mean: of the tokens of the batch's first part.
        loss_spread: standard deviation of these.
        loss_max: the largest of these.
    """

    entropy: Float[Array, "L N"]
    max_logit: Float[Array, "L N"]
    residual: Float[Array, " L"]
    gradient: dict[str, Array]
    update_ratio: dict[str, Array]
    loss_mean: Float[Array, ""]
    loss_spread: Float[Array, ""]
    loss_max: Float[Array, ""]


class _LayerHealth(Untapped):
    """Keeps the figures of one layer, and lets go of the maps that they are of."""

    watched = True

    def __init__(self, mask: Bool[Array, "B T T"], valid: Bool[Array, "B T"]) -> None:
        self._mask, self._valid = mask, valid
        self._found: Values = {}

    def __call__(self, name: str, value: Array) -> Array:
        if name == "attn_probs":
            self._found["entropy"] = entropy(value, self._mask)
        elif name == "attn_scores":
            self._found["max_logit"] = largest_logit(value, self._mask)
        elif name == "output":
            self._found["residual"] = rank_residual(value, self._valid)
        return value

    def recorded(self) -> Values:
        return self._found


class HealthTap(Untapped):
    """Reads a stacked model's attention, layer by layer.

    Args:
        mask: who sees whom.
        valid: False on pads.
    """

    watched = True

    def __init__(self, mask: Bool[Array, "B T T"], valid: Bool[Array, "B T"]) -> None:
        self._mask, self._valid = mask, valid
        self.found: Values = {}

    def inner(self, forced: Mapping[str, Array]) -> Tapper:
        return _LayerHealth(self._mask, self._valid)

    def add_layers(self, stacked: Values) -> None:
        self.found = stacked


def watched_figures(
    model: Llama,
    batch: Batch,
    gradients: Weights,
    before: Weights,
    after: Weights,
    frozen: Weights,
    mitigation: MitigationSettings = NO_MITIGATION,
) -> WatchedFigures:
    """Return the figures of a step.

    Args:
        model: before the step.
        batch: the first part of what it is taken on.
        gradients: of the whole batch.
        before: what is trained, before the step.
        after: the same after it.
        frozen: what is not trained.
        mitigation: with which attention is looked at, but for dropout: what the softmax sees.
    """
    mask = batch.mask()
    tap = HealthTap(mask.to_bool(), batch.valid)
    through = mitigated(mitigation, model, before, tap=tap)
    logits, _ = model(batch.tokens, positions=batch.positions, mask=mask, tap=through)
    targets, counted = successors(batch.tokens, valid=batch.valid, segments=batch.segments)
    losses = jnp.where(counted, token_losses(logits, targets), jnp.nan)
    return WatchedFigures(
        entropy=jnp.nanmin(tap.found["entropy"], axis=1),
        max_logit=jnp.nanmax(tap.found["max_logit"], axis=1),
        residual=jnp.nanmin(tap.found["residual"], axis=1),
        gradient={name: norm_by_layer(name, g) for name, g in gradients.items()},
        update_ratio=_update_ratios(before, after, frozen),
        loss_mean=jnp.nanmean(losses),
        loss_spread=jnp.nanstd(losses),
        loss_max=jnp.nanmax(losses),
    )


def _update_ratios(before: Weights, after: Weights, frozen: Weights) -> dict[str, Array]:
    ratios = {}
    for name, weight in before.items():
        if name.endswith(FACTOR_A):
            module = name.removesuffix(FACTOR_A)
            ratios[module + "weight"] = relative_update(before, after, frozen, module)
        elif not name.endswith(FACTOR_B):
            moved = norm_by_layer(name, after[name] - weight)
            ratios[name] = moved / norm_by_layer(name, weight)
    return ratios


def norm_by_layer(name: str, value: Any) -> Any:
    """Return a weight's norm, of each layer where it is a stack of them."""
    first = int(name.startswith("layers."))
    return jnp.sqrt(jnp.square(value).sum(axis=tuple(range(first, value.ndim))))
