"""All figures of one layer's attention weights, inside a compiled step.

`parity.health.metrics.attention` has the same in NumPy, with what each is for; a test holds the two
equal. No gradient flows through any of them.

Shapes: B batch, N heads, T queries, S = T keys, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllama.health.figures import entropy, largest_logit, mean_of, widened

# As `parity.health.metrics.attention` has them, with the reasons.
MOST_SINGULAR = 512
MOST_COMPARED = 128
LAZY_SHARE = 0.9
SINK_TOKENS = 64
PEAK_REST = 1e-2


class MapFigures(NamedTuple):
    """Figures of one layer's heads, as of parity's `HeadFigures`; NaN, or -1, where none can be.

    Attributes:
        entropy: mean over queries of H / ln n, of n >= 2 visible keys: 0 peaked, 1 uniform.
        peaked: share of those queries of which one key has all the weight but a hundredth.
        one_distance: share of them whose heaviest key stands at one and the same distance.
        sink: weight on the first key, mean over the queries that see it, of the first 64 tokens.
        column: the largest mean weight of a key that at least half of all queries see.
        column_at: which key that is.
        column_first: 1 where it is the first key that is seen at all, else 0.
        lazy_k: how many singular values have nine tenths of the map's squared ones.
        reach: mean distance of what is attended to, in tokens.
        leakage: weight on keys that are hidden, summed.
        leaking: how many such cells there are.
        leak_query, leak_key: the largest of it, -1 where there is none.
        row_sum: the largest distance of a row's sum from 1.
        row_sum_at: the query of that.
        nearest: Jensen-Shannon distance to the most similar head, 0 equal, 1 disjoint.
        nearest_head: which head that is, -1 without another.
        max_logit: the largest scaled score of a visible key; NaN where scores are not given.
    """

    entropy: Float[Array, "B N"]
    peaked: Float[Array, "B N"]
    one_distance: Float[Array, "B N"]
    sink: Float[Array, "B N"]
    column: Float[Array, "B N"]
    column_at: Int[Array, "B N"]
    column_first: Float[Array, "B N"]
    lazy_k: Float[Array, "B N"]
    reach: Float[Array, "B N"]
    leakage: Float[Array, "B N"]
    leaking: Float[Array, "B N"]
    leak_query: Int[Array, "B N"]
    leak_key: Int[Array, "B N"]
    row_sum: Float[Array, "B N"]
    row_sum_at: Int[Array, "B N"]
    nearest: Float[Array, "B N"]
    nearest_head: Int[Array, "B N"]
    max_logit: Float[Array, "B N"]


def map_figures(
    weights: Float[Array, "B N T S"],
    mask: Bool[Array, "B T S"],
    scores: Float[Array, "B N T S"] | None = None,
) -> MapFigures:
    """Measure one layer's heads.

    Args:
        weights: attention weights after the softmax, of queries and keys of the same tokens.
        mask: True where the query sees the key; a query that sees none is left out.
        scores: scaled scores before the mask.
    """
    wide = widened(weights)
    live, counts = mask.any(axis=-1), mask.sum(axis=-1, dtype=jnp.int32)
    any_live, seen = live.any(axis=-1)[:, None], mask[:, None]
    shown = jnp.where(seen, wide, 0)
    choice = (counts >= 2)[:, None]
    at_query = jnp.arange(wide.shape[2], dtype=wide.dtype)[None, None]
    at_key = jnp.arange(wide.shape[3], dtype=wide.dtype)

    hidden = jnp.abs(jnp.where(seen | ~live[:, None, :, None], 0, wide))
    leak = hidden.reshape(*hidden.shape[:2], -1).argmax(axis=-1)
    leaks = hidden.max(axis=(-2, -1)) > 0
    sums = shown.sum(axis=-1)
    off = jnp.where(live[:, None], jnp.abs(wide.sum(axis=-1) - 1), -1)

    first = mask.any(axis=1).argmax(axis=-1)
    early = live & (jnp.arange(mask.shape[1])[None] < first[:, None] + SINK_TOKENS)
    mass = _column_mass(shown, mask)
    often = mask.sum(axis=1, dtype=jnp.int32) * 2 >= live.sum(axis=1, dtype=jnp.int32)[:, None]
    column = jnp.where(often[:, None], mass, -1).argmax(axis=-1)
    sink = _column_mass(jnp.where(early[:, None, :, None], shown, 0), mask & early[:, :, None])
    nearest, nearest_head = _nearest(shown, counts)

    def said(value: Array, where: Array = any_live) -> Array:
        return jnp.where(where, value, jnp.nan)

    def placed(value: Array, where: Array = any_live) -> Array:
        return jnp.where(where, value, -1)

    no_scores = jnp.full(wide.shape[:2], jnp.nan, wide.dtype)
    return MapFigures(
        entropy=entropy(weights, mask),
        peaked=mean_of((shown.max(axis=-1) > 1 - PEAK_REST).astype(wide.dtype), choice),
        one_distance=_one_distance(shown, choice),
        sink=said(jnp.take_along_axis(sink, first[:, None, None], axis=-1)[..., 0]),
        column=said(jnp.take_along_axis(mass, column[..., None], axis=-1)[..., 0]),
        column_at=placed(column),
        column_first=said((column == first[:, None]).astype(wide.dtype)),
        lazy_k=said(_lazy_k(wide, live)),
        reach=mean_of(at_query * sums - shown @ at_key, live[:, None]),
        leakage=said(hidden.sum(axis=(-2, -1))),
        leaking=said((hidden > 0).sum(axis=(-2, -1), dtype=jnp.int32).astype(wide.dtype)),
        leak_query=placed(leak // hidden.shape[-1], any_live & leaks),
        leak_key=placed(leak % hidden.shape[-1], any_live & leaks),
        row_sum=said(off.max(axis=-1)),
        row_sum_at=placed(off.argmax(axis=-1)),
        nearest=nearest,
        nearest_head=nearest_head,
        max_logit=no_scores if scores is None else largest_logit(scores, mask),
    )


def rollout(weights: Float[Array, "L B N T S"], mask: Bool[Array, "B T S"]) -> Float[Array, "L B"]:
    """Return the mean distance, in tokens, of what reached a token through all layers so far.

    Args:
        weights: of all layers, after the softmax.
        mask: True where the query sees the key.

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928).
    """
    T = mask.shape[1]
    identity, at = jnp.eye(T, dtype=jnp.float32)[None], jnp.arange(T, dtype=jnp.float32)

    def through(before: Array, layer: Array) -> tuple[Array, Array]:
        heads = widened(layer).astype(jnp.float32).mean(axis=1)
        after = (jnp.where(mask, heads, 0) + identity) / 2 @ before
        return after, mean_of(at[None] * after.sum(axis=-1) - after @ at, mask.any(axis=-1))

    start = jnp.broadcast_to(identity, mask.shape)
    return jax.lax.scan(through, start, weights)[1]


def _column_mass(shown: Float[Array, "B N T S"], seen: Bool[Array, "B T S"]) -> Array:
    """Return the mean weight that each key has from the queries that see it."""
    number = jnp.maximum(seen.sum(axis=1, dtype=jnp.int32), 1)[:, None]
    return shown.sum(axis=2) / number.astype(shown.dtype)


def _one_distance(shown: Float[Array, "B N T S"], choice: Bool[Array, "B 1 T"]) -> Array:
    """Return the share of queries whose heaviest key stands at the most frequent distance."""
    T, S = shown.shape[2:]
    distances = jnp.arange(T)[None, None] - shown.argmax(axis=-1) + S - 1
    chosen = jnp.broadcast_to(choice, distances.shape)

    def most(at: Array, counted: Array) -> Array:
        return jnp.zeros(T + S, jnp.int32).at[at].add(counted.astype(jnp.int32)).max()

    often = jax.vmap(jax.vmap(most))(distances, chosen).astype(shown.dtype)
    number = choice.sum(axis=-1, dtype=jnp.int32).astype(shown.dtype)
    return jnp.where(number > 0, often / jnp.maximum(number, 1), jnp.nan)


def _lazy_k(wide: Float[Array, "B N T S"], live: Bool[Array, "B T"]) -> Array:
    """Return how many singular values have nine tenths of their squares, of the first live rows."""
    first = jnp.argsort(~live, axis=-1, stable=True)[:, :MOST_SINGULAR]
    rows = jnp.take_along_axis(wide, first[:, None, :, None], axis=2)
    counted = jnp.take_along_axis(live, first, axis=-1)[:, None, :, None]
    rows = jnp.where(counted, rows, 0)
    squares = jnp.linalg.eigvalsh(rows @ rows.mT)[..., ::-1].clip(0)
    enough = LAZY_SHARE * squares.sum(axis=-1, keepdims=True) * (1 - 1e-6)
    needed = (jnp.cumsum(squares, axis=-1) < enough).sum(axis=-1, dtype=jnp.int32) + 1
    return needed.astype(wide.dtype)


def _nearest(shown: Float[Array, "B N T S"], counts: Int[Array, "B T"]) -> tuple[Array, Array]:
    """Return each head's distance to its nearest, and which that is."""
    N, T = shown.shape[1:3]
    choice = counts >= 2
    order = jnp.argsort(~choice, axis=-1, stable=True)
    number = choice.sum(axis=-1, dtype=jnp.int32)[:, None]
    compared = jnp.minimum(number, MOST_COMPARED)
    step = jnp.arange(min(T, MOST_COMPARED), dtype=jnp.int32)[None]
    evenly = step * jnp.maximum(number - 1, 0) // jnp.maximum(compared - 1, 1)
    at = jnp.take_along_axis(order, jnp.minimum(evenly, T - 1), axis=-1)
    maps = jnp.take_along_axis(shown, at[:, None, :, None], axis=2)
    entropies, counted = _row_entropies(maps), step < compared

    def from_one(head: tuple[Array, Array]) -> Array:  # heads in turn: N * N maps are too many
        one, own = head
        mixed = _row_entropies((maps + one[:, None]) / 2) - (entropies + own[:, None]) / 2
        return jnp.sqrt(mean_of(mixed, counted[:, None]).clip(0) / jnp.log(2.0).astype(mixed.dtype))

    distances = jax.lax.map(from_one, (maps.swapaxes(0, 1), entropies.swapaxes(0, 1)))
    alone = jnp.eye(N, dtype=bool)[None]
    distances = jnp.where(alone, jnp.inf, distances.swapaxes(0, 1))
    told = (number > 0) & (N > 1)
    return (
        jnp.where(told, distances.min(axis=-1), jnp.nan),
        jnp.where(told, distances.argmin(axis=-1), -1),
    )


def _row_entropies(weights: Array) -> Array:
    return -(weights * jnp.log(jnp.where(weights > 0, weights, 1))).sum(axis=-1)
