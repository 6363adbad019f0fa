"""Attention in blocks of queries and keys: exact, any mask, memory linear in the length.

A block of queries meets its keys block by block and keeps a running maximum, sum and weighted sum
(Milakov and Gimelshein 2018, arXiv 1805.02867); blocks of keys before the first and after the last
that any of its queries may see are never touched, so that a causal mask costs half and a window
what it shows. The backward pass makes the probabilities again from the saved log-sum (Dao et al.
2022, arXiv 2205.14135).

Shapes: B batch, T queries, S keys, N query heads, K kv heads, G = N // K, H head dim; Q queries and
J keys of a block, P keys in whole blocks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllama.dtypes import at_least_float32
from jaxllama.masks import BoundMask

Mask = Bool[Array, "B T S"] | BoundMask
# Queries from which blocks pay, and the size of a block, largest first; measured on CPU, see
# docs/performance.md. Elsewhere small products in a loop leave most of the device idle.
_SIZES = {"cpu": ((128, 64), (48, 32))}
_ELSEWHERE = ((2048, 512),)


def block_size(queries: int, *, always: bool = False) -> int:
    """Return how many queries, and keys, a block has; 0 where whole maps are as fast.

    Args:
        queries: T.
        always: whether blocks are wanted however few queries there are.
    """
    sizes = _SIZES.get(jax.default_backend(), _ELSEWHERE)
    fitting = [size for least, size in sizes if queries >= least]
    return fitting[0] if fitting else always * sizes[-1][1]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend_blockwise(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    scale: float,
    size: int,
) -> Float[Array, "B T N H"]:
    """Attend from every query to the keys its mask row shows, `size` by `size`.

    Gradients of the first order are defined, in reverse mode.
    """
    return _forward(q, k, v, mask, scale, size)[0]


def _forward(
    q: Array, k: Array, v: Array, mask: Mask, scale: float, size: int
) -> tuple[Array, tuple[Any, ...]]:
    blocks = _Blocks(q, k, v, mask, scale, size)

    def one(block: tuple[Array, Array]) -> tuple[Array, Array]:
        # Bound to the queries: what depends on tokens alone would be taken out of a scan over
        # layers by its gradient, for all blocks at once: the whole mask.
        index, queries = lax.optimization_barrier(block)
        seen, first, end = blocks.seen(index)

        def meet(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, context = state
            scores, visible = blocks.scores(queries, seen, j)
            # A finite fill, then exact zeros, as in the reference.
            scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
            new_highest = jnp.maximum(highest, scores.max(axis=-1))
            probs = jnp.exp(scores - new_highest[..., None])
            probs = jnp.where(visible, probs, jnp.zeros_like(probs))
            kept = jnp.exp(highest - new_highest)
            added = blocks.product("bkrs,bksh->bkrh", blocks.rows(probs), blocks.v_at(j))
            return (
                new_highest,
                total * kept + probs.sum(axis=-1),
                context * kept[..., None] + blocks.groups(added),
            )

        highest, total, context = lax.fori_loop(first, end, meet, blocks.start())
        # A query that sees nothing has a sum of zero, and a context of zeros to divide by it.
        total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
        return context / total[..., None], highest + jnp.log(total)

    context, log_sums = lax.map(one, (blocks.indices, blocks.q))
    return blocks.joined(context, q.dtype), (q, k, v, mask, context, log_sums)


def _backward(
    scale: float, size: int, saved: tuple[Any, ...], gradient: Array
) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, context, log_sums = saved
    blocks = _Blocks(q, k, v, mask, scale, size)
    pulls = blocks.split(gradient)

    def one(state: tuple[Array, Array], block: tuple[Array, ...]) -> Any:
        index, queries, pull, context, log_sums = block
        seen, first, end = blocks.seen(index)
        # What each query's own normalisation takes back.
        shared = (blocks.groups(pull).astype(blocks.wide) * context).sum(axis=-1)

        def meet(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_q, to_k, to_v = state
            scores, visible = blocks.scores(queries, seen, j)
            probs = jnp.exp(scores - log_sums[..., None])
            probs = jnp.where(visible, probs, jnp.zeros_like(probs))
            wanted = blocks.product("bkrh,bksh->bkrs", pull, blocks.v_at(j))
            to_scores = blocks.rows(probs * (blocks.groups(wanted) - shared[..., None])) * scale
            to_q += blocks.product("bkrs,bksh->bkrh", to_scores, blocks.k_at(j))
            more_k = blocks.product("bkrs,bkrh->bksh", to_scores, queries)
            more_v = blocks.product("bkrs,bkrh->bksh", blocks.rows(probs), pull)
            return to_q, blocks.add_at(to_k, j, more_k), blocks.add_at(to_v, j, more_v)

        to_q, *to_keys = lax.fori_loop(
            first, end, meet, (jnp.zeros(queries.shape, blocks.wide), *state)
        )
        return tuple(to_keys), blocks.groups(to_q)

    nothing = jnp.zeros(blocks.k.shape, blocks.wide)
    (to_k, to_v), to_q = lax.scan(
        one, (nothing, nothing), (blocks.indices, blocks.q, pulls, context, log_sums)
    )
    return (
        blocks.joined(to_q, q.dtype),
        blocks.keys_joined(to_k, k.dtype),
        blocks.keys_joined(to_v, v.dtype),
        None,
    )


attend_blockwise.defvjp(_forward, _backward)


class _Blocks:
    """The operands of one attention, cut up: queries [blocks, B, K, G*Q, H], keys [B, K, P, H].

    Both are padded to whole blocks; a padded key is seen by no query, and a padded query is cut off
    again.
    """

    def __init__(self, q: Array, k: Array, v: Array, mask: Mask, scale: float, size: int) -> None:
        self.B, self.T, self.N, self.H = q.shape
        self.S, self.K = k.shape[1:3]
        self.G, self.size, self.scale, self.mask = self.N // self.K, size, scale, mask
        self.wide = at_least_float32(q.dtype)
        self.q = self.split(q)
        self.k, self.v = self._keys(k), self._keys(v)
        self.indices = jnp.arange(len(self.q), dtype=jnp.int32)

    def split(self, x: Float[Array, "B T N H"]) -> Float[Array, "blocks B K GQ H"]:
        """Cut queries, or what belongs to them, into blocks."""
        count = -(-self.T // self.size)
        x = jnp.pad(x, ((0, 0), (0, count * self.size - self.T), (0, 0), (0, 0)))
        x = x.reshape(self.B, count, self.size, self.K, self.G, self.H).transpose(1, 0, 3, 4, 2, 5)
        return x.reshape(count, self.B, self.K, self.G * self.size, self.H)

    def joined(
        self, blocks: Float[Array, "blocks B K G Q H"], dtype: jnp.dtype
    ) -> Float[Array, "B T N H"]:
        """Put together what `split` took apart."""
        whole = blocks.transpose(1, 0, 4, 2, 3, 5).reshape(self.B, -1, self.N, self.H)
        return whole[:, : self.T].astype(dtype)

    def _keys(self, x: Float[Array, "B S K H"]) -> Float[Array, "B K P H"]:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -self.S % self.size), (0, 0)))

    def keys_joined(self, x: Float[Array, "B K P H"], dtype: jnp.dtype) -> Float[Array, "B S K H"]:
        """Undo what was done to the keys."""
        return x[:, :, : self.S].swapaxes(1, 2).astype(dtype)

    def start(self) -> tuple[Array, Array, Array]:
        """Return maximum, sum and context of queries that have met no key."""
        shape = (self.B, self.K, self.G, self.size)
        lowest = jnp.full(shape, jnp.finfo(self.wide).min, self.wide)
        return lowest, jnp.zeros(shape, self.wide), jnp.zeros((*shape, self.H), self.wide)

    def seen(self, index: Int[Array, ""]) -> tuple[Bool[Array, "B Q P"], Array, Array]:
        """Return what the queries of a block may see, and from which block of keys to which."""
        places = jnp.minimum(index * self.size + jnp.arange(self.size, dtype=jnp.int32), self.T - 1)
        mask = self.mask
        seen = mask.block(places) if isinstance(mask, BoundMask) else mask[:, places]
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, -self.S % self.size)))
        any_seen = seen.any(axis=(0, 1)).reshape(-1, self.size).any(axis=-1)
        number = jnp.arange(len(any_seen), dtype=jnp.int32)
        first = jnp.where(any_seen, number, len(any_seen)).min()
        return seen, first, jnp.where(any_seen, number + 1, 0).max()

    def scores(
        self, queries: Float[Array, "B K GQ H"], seen: Bool[Array, "B Q P"], j: Int[Array, ""]
    ) -> tuple[Float[Array, "B K G Q J"], Bool[Array, "B 1 1 Q J"]]:
        """Return the scores of a block of queries and one of keys, and which of them count."""
        scores = self.product("bkrh,bksh->bkrs", queries, self.k_at(j))
        visible = lax.dynamic_slice_in_dim(seen, j * self.size, self.size, axis=2)
        return self.groups(scores) * jnp.asarray(self.scale, self.wide), visible[:, None, None]

    def product(self, sum_of: str, x: Array, y: Array) -> Array:
        """Multiply in y's dtype, as the reference multiplies probabilities; add in the wide one."""
        return jnp.einsum(sum_of, x.astype(y.dtype), y, preferred_element_type=self.wide)

    def groups(self, x: Float[Array, "B K GQ X"]) -> Float[Array, "B K G Q X"]:
        """Tell the queries of one kv head apart."""
        return x.reshape(self.B, self.K, self.G, self.size, -1)

    def rows(self, x: Float[Array, "B K G Q X"]) -> Float[Array, "B K GQ X"]:
        """Put all queries of one kv head below each other: one product serves them all."""
        return x.reshape(self.B, self.K, self.G * self.size, -1)

    def k_at(self, j: Int[Array, ""]) -> Float[Array, "B K J H"]:
        """Return a block of keys."""
        return lax.dynamic_slice_in_dim(self.k, j * self.size, self.size, axis=2)

    def v_at(self, j: Int[Array, ""]) -> Float[Array, "B K J H"]:
        """Return a block of values."""
        return lax.dynamic_slice_in_dim(self.v, j * self.size, self.size, axis=2)

    def add_at(self, whole: Array, j: Int[Array, ""], more: Array) -> Array:
        """Add to the gradients of a block of keys or values."""
        old = lax.dynamic_slice_in_dim(whole, j * self.size, self.size, axis=2)
        return lax.dynamic_update_slice_in_dim(whole, old + more, j * self.size, axis=2)
