"""The loss a language model is trained on, with pads and document borders left out of it.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def next_token_loss(
    logits: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    *,
    valid: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy, in nats, of each real token's successor.

    A token's successor is the next real token of its row, over pads between them if need be. The
    last token of a row or of a document has none, and pads neither count nor are predicted.

    Args:
        logits: the model's, in whatever dtype the loss is to be taken in.
        tokens: ids, those the logits were computed for.
        valid: False on pads.
        segments: document number of each token; None when a row is one document.

    Returns:
        The mean over all tokens with a successor; 0 when none has one.
    """
    targets, counted = successors(tokens, valid=valid, segments=segments)
    losses = token_losses(logits, targets)
    total = jnp.sum(jnp.where(counted, losses, jnp.zeros_like(losses)))
    return total / jnp.maximum(jnp.sum(counted), 1).astype(logits.dtype)


def token_losses(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Return the cross-entropy of each target, in nats."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probs, targets[:, :, None], axis=2)[:, :, 0]


def successors(
    tokens: Int[Array, "B T"],
    *,
    valid: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Return what each token is to predict, and where there is something to.

    Arguments as for `next_token_loss`.
    """
    length = tokens.shape[1]
    columns = jnp.arange(length, dtype=jnp.int32)[None, :]
    # Of each column the first real one from there on; `length` stands for none.
    real = jax.lax.cummin(jnp.where(valid, columns, length), axis=1, reverse=True)
    following = jnp.pad(real[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    counted = valid & (following < length)
    following = jnp.minimum(following, length - 1)
    if segments is not None:
        counted &= jnp.take_along_axis(segments, following, axis=1) == segments
    targets = jnp.take_along_axis(tokens, following, axis=1)
    return targets, counted
