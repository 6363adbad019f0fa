"""Entropy, largest score and rank residual of every layer, inside a compiled step.

`parity.health.metrics` has the same in NumPy, and a test holds the two equal. No gradient flows
through any of them: they are watched, not trained on.

Shapes: B batch, T queries, S keys, N heads, D model dim, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxllama.dtypes import at_least_float32
from jaxllama.errors import InputError


class HealthFigures(NamedTuple):
    """Figures of a pass, what cannot be said being NaN.

    Attributes:
        entropy: mean over queries of H / ln n, of n >= 2 visible keys: 0 peaked, 1 uniform.
        largest_logit: the largest scaled score of a visible key.
        residual: how far the states after a layer are from all being one vector: 0 they are.
    """

    entropy: Float[Array, "L B N"]
    largest_logit: Float[Array, "L B N"]
    residual: Float[Array, "L B"]


def health_figures(
    taps: Mapping[str, Shaped[Array, "..."]], valid: Bool[Array, "B T"]
) -> HealthFigures:
    """Return the figures of every layer of a pass.

    Args:
        taps: what a `jaxllama.Taps` has recorded of a model's pass without a cache.
        valid: False on pads.

    Raises:
        InputError: a layer's `attn_probs`, `attn_scores` or `output`, or the mask, is missing, as
            of an attention that shows no weights.
    """
    layers = sum(name.startswith("layers.") and name.endswith(".output") for name in taps)
    names = ("attn_probs", "attn_scores", "output")
    needed = ["mask", *(f"layers.{i}.{name}" for i in range(max(layers, 1)) for name in names)]
    if missing := [name for name in needed if name not in taps]:
        raise InputError(
            f"health: the taps have no {missing[0]}; record a whole pass with jaxllama.Taps, by an "
            "attention that shows its weights (backend xla)"
        )
    mask = taps["mask"]

    def stacked(name: str) -> list[Array]:
        return [taps[f"layers.{i}.{name}"] for i in range(layers)]

    return HealthFigures(
        entropy=jnp.stack([entropy(weights, mask) for weights in stacked("attn_probs")]),
        largest_logit=jnp.stack([largest_logit(scores, mask) for scores in stacked("attn_scores")]),
        residual=jnp.stack([rank_residual(states, valid) for states in stacked("output")]),
    )


def entropy(weights: Float[Array, "B N T S"], mask: Bool[Array, "B T S"]) -> Float[Array, "B N"]:
    """Return each head's mean entropy over that of equal weights, of queries with a choice.

    Args:
        weights: attention weights.
        mask: True where the query sees the key; queries that see fewer than two are left out.

    Source: Zhai et al. 2023 (arXiv 2303.06296).
    """
    wide = widened(weights)
    shown = jnp.where(mask[:, None], wide, 0)
    logs = jnp.log(jnp.where(shown > 0, shown, 1))
    count = mask.sum(axis=-1, dtype=jnp.int32)[:, None].astype(wide.dtype)
    choice = count >= 2
    normal = -(shown * logs).sum(axis=-1) / jnp.log(jnp.where(choice, count, 2))
    return mean_of(normal, choice)


def largest_logit(
    scores: Float[Array, "B N T S"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B N"]:
    """Return each head's largest scaled score of a visible key; NaN where none is visible."""
    wide = widened(scores)
    largest = jnp.where(mask[:, None], wide, -jnp.inf).max(axis=(-2, -1))
    return jnp.where(mask.any(axis=(-2, -1))[:, None], largest, jnp.nan)


def rank_residual(states: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """Return how far each row's real tokens are from all being one vector, relative to their size.

    The one vector is their mean, and size the geometric mean of the largest column sum and the
    largest row sum of magnitudes. Of fewer than two tokens it is NaN.

    Source: Dong, Cordonnier and Loukas 2021 (arXiv 2103.03404).
    """
    wide = widened(states)
    real = valid[:, :, None]
    count = valid.sum(axis=1, dtype=jnp.int32)[:, None, None]
    shown = jnp.where(real, wide, 0)
    mean = shown.sum(axis=1, keepdims=True) / jnp.maximum(count, 1).astype(wide.dtype)
    size = _composite_norm(shown)
    left = _composite_norm(jnp.where(real, wide - mean, 0))
    ratio = jnp.where(size > 0, left / jnp.where(size > 0, size, 1), 0)
    return jnp.where(count[:, 0, 0] >= 2, ratio, jnp.nan)


def widened(values: Array) -> Array:
    """Return values in at least float32, cut off from gradients."""
    return jax.lax.stop_gradient(values.astype(at_least_float32(values.dtype)))


def mean_of(values: Array, counted: Array) -> Array:
    """Return the mean over the last axis of what counts; NaN where nothing does."""
    counted = jnp.broadcast_to(counted, values.shape)
    number = counted.sum(axis=-1, dtype=jnp.int32).astype(values.dtype)
    total = jnp.where(counted, values, 0).sum(axis=-1)
    return jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)


def _composite_norm(matrix: Float[Array, "B T D"]) -> Float[Array, "B"]:
    """Return the root of the product of the operator norms of l1 and l-infinity."""
    size = jnp.abs(matrix)
    # Roots first: their product does not overflow where that of the sums does.
    return jnp.sqrt(size.sum(axis=1).max(axis=-1)) * jnp.sqrt(size.sum(axis=2).max(axis=-1))
