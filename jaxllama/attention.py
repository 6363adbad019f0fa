"""Grouped-query attention under an explicit mask, on several backends.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, G = N // K, H head dim.
Query head n uses kv head n // G. No backend repeats keys or values in memory. A query that may
see no key gets exactly zero on every backend: left alone, a softmax over nothing but masked
cells would return the mean of all values.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxllama.dtypes import widened
from jaxllama.errors import InputError
from jaxllama.taps import Tap, untapped

Backend = Literal["xla", "dot_product", "cudnn"]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    *,
    scale: float,
    backend: Backend = "xla",
    tap: Tap = untapped,
) -> Float[Array, "B T N H"]:
    """Attend from every query to the keys its mask row shows.

    Args:
        q: rotated queries.
        k: rotated keys.
        v: values.
        mask: True where the query may see the key.
        scale: factor on the scores.
        backend: `xla` is the reference and alone can show scores and probabilities to `tap`;
            `dot_product` is `jax.nn.dot_product_attention`; `cudnn` the same on cuDNN's kernel.
        tap: sees `attn_scores`, `attn_probs` (both [B, N, T, S]) and `attn_context`.

    Returns:
        The weighted values of each head, in q's dtype.

    Raises:
        InputError: an unknown backend, or shapes that do not fit together.
    """
    _check(q, k, v, mask, backend)
    if backend == "xla":
        context = _attend_reference(q, k, v, mask, scale, tap)
    else:
        context = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask[:, None, :, :],
            scale=scale,
            implementation="cudnn" if backend == "cudnn" else "xla",
        )
        sees_any = mask.any(axis=-1)
        context = jnp.where(sees_any[:, :, None, None], context, jnp.zeros_like(context))
    return tap("attn_context", context)


def _attend_reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    scale: float,
    tap: Tap,
) -> Float[Array, "B T N H"]:
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    G = N // K
    wide = widened(q.dtype)
    grouped_q = q.reshape(B, T, K, G, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped_q, k, preferred_element_type=wide)
    scores = tap("attn_scores", scores.reshape(B, N, T, S) * jnp.asarray(scale, wide))
    visible = mask[:, None, :, :]
    # A finite fill, then exact zeros: adding -inf would make the gradient of an empty row NaN.
    probs = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(wide).min), axis=-1)
    probs = tap("attn_probs", jnp.where(visible, probs, jnp.zeros_like(probs)))
    grouped_probs = probs.reshape(B, K, G, T, S).astype(v.dtype)
    context = jnp.einsum("bkgts,bskh->btkgh", grouped_probs, v, preferred_element_type=wide)
    return context.reshape(B, T, N, H).astype(q.dtype)


def _check(q: Array, k: Array, v: Array, mask: Array, backend: str) -> None:
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    if backend not in get_args(Backend):
        raise InputError(f"attention backend {backend!r}: expected one of {get_args(Backend)}")
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != H or N % K:
        raise InputError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape}: expected q (B, T, N, H) and "
            "k, v (B, S, K, H) with K dividing N"
        )
    if mask.shape != (B, T, S) or mask.dtype != jnp.bool_:
        raise InputError(
            f"attention mask: {mask.dtype} {mask.shape}, expected bool {(B, T, S)} = (B, T, S), "
            "True where a query may see a key; build it with jaxllama.masks"
        )
