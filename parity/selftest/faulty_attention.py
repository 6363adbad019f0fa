"""An attention of the selftest's own, with a place to go wrong at each operation.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, G = N // K, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import model as llama
from jaxllama.dtypes import at_least_float32
from jaxllama.masks import BoundMask
from parity.selftest.fault import Patch, Patches, in_layer

Weigh = Callable[[jax.Array, jax.Array], jax.Array]


def softmax(scores: jax.Array, visible: jax.Array) -> jax.Array:
    """Return weights [B N T S] over what [B 1 T S] shows; nothing where nothing is shown."""
    hidden = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(hidden, axis=-1)
    return jnp.where(visible, weights, jnp.zeros_like(weights))


def same(x: Any) -> Any:
    """Change nothing."""
    return x


def attention(
    *,
    key_heads: Callable[[np.ndarray, int], np.ndarray] = lambda n, G: n // G,
    value_heads: Callable[[np.ndarray, int], np.ndarray] = lambda n, G: n // G,
    scale: Callable[[float], float] = same,
    scores: Callable[[jax.Array], jax.Array] = same,
    weigh: Weigh = softmax,
    context: Callable[[jax.Array], jax.Array] = same,
    after: Callable[[jax.Array], jax.Array] = same,
    operand: Callable[[jax.Array], jax.Array] = same,
) -> Callable[..., jax.Array]:
    """Return a function to stand in the place of `jaxllama.model.attend`.

    Args:
        key_heads: kv head whose keys a query head reads, given the heads [N] and G.
        value_heads: the same for values.
        scale: of the scores.
        scores: changes them before they are shown.
        weigh: makes weights of scores and mask.
        context: changes the output before it is shown.
        after: changes it after that.
        operand: changes what enters the product of queries and keys.
    """

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, *, tap: Any, **options: Any
    ) -> jax.Array:
        N, G = q.shape[2], q.shape[2] // k.shape[2]
        heads = np.arange(N)
        wide = at_least_float32(q.dtype)
        visible = (mask.to_bool() if isinstance(mask, BoundMask) else mask)[:, None]
        keys, values = k[:, :, key_heads(heads, G)], v[:, :, value_heads(heads, G)]
        s = jnp.einsum(
            "btnh,bsnh->bnts", operand(q), operand(keys), preferred_element_type=wide
        ) * jnp.asarray(scale(options["scale"]), wide)
        s = tap("attn_scores", scores(s))
        p = tap("attn_probs", weigh(s, visible))
        c = jnp.einsum("bnts,bsnh->btnh", p.astype(v.dtype), values, preferred_element_type=wide)
        return after(tap("attn_context", context(c.astype(q.dtype))))

    return attend


def attention_patches(**changes: Any) -> list[Patch]:
    """Return the patch that puts a changed `attention` into the model."""
    return [(llama, "attend", attention(**changes))]


def attention_patches_in(layer: int | None, **changes: Any) -> Patches:
    """Return patches that change attention in one layer, or in all of them if None."""
    return in_layer(layer, lambda moment: attention_patches(**changes))
