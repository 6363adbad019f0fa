"""Attention that holds whole maps, and can show them.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxllama.dtypes import at_least_float32
from jaxllama.taps import Tapper


def attend_reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    scale: float,
    tap: Tapper,
) -> Float[Array, "B T N H"]:
    """Attend from every query to the keys its mask row shows; scores and probabilities are taps."""
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    wide = at_least_float32(q.dtype)
    # All queries of a kv head below each other, r = (G, T): one product with its keys serves them,
    # and batch dimensions stand first, where a cache that is held by heads needs no copy.
    rows = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("bkrh,bksh->bkrs", rows, k, preferred_element_type=wide)
    scores = tap("attn_scores", scores.reshape(B, N, T, S) * jnp.asarray(scale, wide))
    visible = mask[:, None, :, :]
    # A finite fill, then exact zeros: adding -inf would make the gradient of an empty row NaN.
    probs = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(wide).min), axis=-1)
    probs = tap("attn_probs", jnp.where(visible, probs, jnp.zeros_like(probs)))
    weights = probs.reshape(B, K, -1, S).astype(v.dtype)
    context = jnp.einsum("bkrs,bksh->bkrh", weights, v, preferred_element_type=wide)
    return context.reshape(B, N, T, H).swapaxes(1, 2).astype(q.dtype)
