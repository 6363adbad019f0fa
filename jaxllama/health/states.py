"""All figures of one layer's token states and gradients, inside a compiled step.

`parity.health.metrics` has the same in NumPy, with what each is for; a test holds the two equal.

Shapes: B batch, T tokens, D features, N query heads, K key heads, H features of a head, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllama.health.figures import rank_residual, widened


class StreamFigures(NamedTuple):
    """Figures of one layer's states, as of parity's `StateFigures`.

    Attributes:
        residual: how far the states after the layer are from one vector, relative: 0 all alike.
        cosine: mean cosine of two tokens' states, 1 all of one direction.
        value_residual: the same distance as `residual` for the values of each key head.
        added: how large what the layer adds is beside what it is given; the median token's.
        growth: how large the states after the layer are beside those before; the median token's.
        largest: the largest magnitude in the states after the layer.
        ratio: that over the median magnitude.
        largest_token, largest_feature: where it stands; -1 without tokens.
    """

    residual: Float[Array, "B"]
    cosine: Float[Array, "B"]
    value_residual: Float[Array, "B K"]
    added: Float[Array, "B"]
    growth: Float[Array, "B"]
    largest: Float[Array, "B"]
    ratio: Float[Array, "B"]
    largest_token: Int[Array, "B"]
    largest_feature: Int[Array, "B"]


def stream_figures(
    before: Float[Array, "B T D"],
    after: Float[Array, "B T D"],
    values: Float[Array, "B T K H"],
    valid: Bool[Array, "B T"],
) -> StreamFigures:
    """Measure one layer's states.

    Args:
        before: what the layer is given.
        after: what it hands on.
        values: its values, before they are weighed.
        valid: False on pads, which are left out.
    """
    given, made = widened(before), widened(after)
    some = valid.any(axis=1)
    sizes = jnp.maximum(_norm(given), jnp.finfo(given.dtype).tiny)
    magnitudes = jnp.where(valid[:, :, None], jnp.abs(made), jnp.nan)
    flat = jnp.where(valid[:, :, None], jnp.abs(made), -1).reshape(len(made), -1)
    at, largest = flat.argmax(axis=-1), flat.max(axis=-1)
    median = jnp.nanmedian(magnitudes.reshape(len(made), -1), axis=-1)

    def typical(ratio: Array) -> Array:
        return jnp.nanmedian(jnp.where(valid, ratio, jnp.nan), axis=-1)

    return StreamFigures(
        residual=rank_residual(after, valid),
        cosine=_mean_cosine(made, valid),
        value_residual=jnp.stack(
            [rank_residual(values[:, :, head], valid) for head in range(values.shape[2])], axis=1
        ),
        added=typical(_norm(made - given) / sizes),
        growth=typical(_norm(made) / sizes),
        largest=jnp.where(some, largest, jnp.nan),
        ratio=jnp.where(some, largest / median, jnp.nan),
        largest_token=jnp.where(some, at // made.shape[-1], -1),
        largest_feature=jnp.where(some, at % made.shape[-1], -1),
    )


class GradientNorms(NamedTuple):
    """Norms of every layer's gradients, as of parity's `GradientFigures`.

    Attributes:
        whole: of all the layer's weights together.
        query: of each query head's weights.
        key, value: of each key head's weights.
        query_to_value, key_to_value: norms of all of them over that of all values'.
        over_median: `whole` over the median of the layers where it is finite; NaN in others.
        value_over_median: the same of the norm of all values.
    """

    whole: Float[Array, "L"]
    query: Float[Array, "L N"]
    key: Float[Array, "L K"]
    value: Float[Array, "L K"]
    query_to_value: Float[Array, "L"]
    key_to_value: Float[Array, "L"]
    over_median: Float[Array, "L"]
    value_over_median: Float[Array, "L"]


def gradient_norms(gradients: Mapping[str, Array], heads: int, key_heads: int) -> GradientNorms:
    """Measure the gradients of all layers' weights.

    Args:
        gradients: by short name, `q_proj` and so on, those of all layers stacked: matrices
            [L out in] or vectors [L D].
        heads: N.
        key_heads: K.

    Source: Noci et al. 2022 (arXiv 2206.03126).
    """
    squares = sum(jnp.square(_flat(one)).sum(axis=-1) for one in gradients.values())
    whole = jnp.sqrt(jnp.asarray(squares))

    def by_head(name: str, count: int) -> Array:
        stack = widened(gradients[name])
        return _norm(stack.reshape(len(stack), count, -1))

    query, key = by_head("q_proj", heads), by_head("k_proj", key_heads)
    value = by_head("v_proj", key_heads)
    return GradientNorms(
        whole=whole,
        query=query,
        key=key,
        value=value,
        query_to_value=_norm(query) / _norm(value),
        key_to_value=_norm(key) / _norm(value),
        over_median=_over_median(whole),
        value_over_median=_over_median(_norm(value)),
    )


def _over_median(norms: Float[Array, "L"]) -> Float[Array, "L"]:
    finite = jnp.where(jnp.isfinite(norms), norms, jnp.nan)
    return finite / jnp.maximum(jnp.nanmedian(finite), jnp.finfo(norms.dtype).tiny)


def _flat(stack: Array) -> Array:
    return widened(stack).reshape(len(stack), -1)


def _norm(vectors: Array) -> Array:
    return jnp.sqrt(jnp.square(vectors).sum(axis=-1))


def _mean_cosine(states: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """Return the mean cosine of all pairs of two different tokens' states."""
    sizes = jnp.where(valid, _norm(states), 0)[:, :, None]
    units = jnp.where(sizes > 0, states / jnp.where(sizes > 0, sizes, 1), 0)
    count = valid.sum(axis=1, dtype=jnp.int32).astype(states.dtype)
    there = (sizes[:, :, 0] > 0).sum(axis=1, dtype=jnp.int32).astype(states.dtype)
    together = jnp.square(units.sum(axis=1)).sum(axis=-1) - there
    return jnp.where(count >= 2, together / jnp.maximum(count * (count - 1), 1), jnp.nan)
