"""How well a model foretells a text: what a quantised model is held to its source by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllama.errors import InputError
from jaxllama.loss import next_token_loss
from jaxllama.masks import Tokens, causal
from jaxllama.model import Llama


def perplexity(model: Llama, tokens: Sequence[int], *, window: int = 512) -> float:
    """Return the exponential of the mean cross-entropy of all tokens but the first, each once.

    The text is read in windows that overlap by one token, so that the last token of one is what the
    next goes on from; each token counts the same, whatever window it falls into. A token sees what
    stands before it in its window.

    Args:
        model: in whose dtype logits are computed.
        tokens: ids, a bos among them if the model is used to one.
        window: most tokens that are foretold at once.

    Raises:
        InputError: there are fewer than two tokens, or no window.
    """
    if len(tokens) < 2 or window < 1:
        raise InputError(
            f"perplexity: {len(tokens)} tokens in windows of {window}, expected at least 2 in "
            "windows of 1 or more; give a longer text"
        )
    graph, state = nnx.split(model)

    @jax.jit
    def mean_loss(state: nnx.State, row: jax.Array, valid: jax.Array) -> jax.Array:
        positions = jnp.arange(row.shape[1], dtype=jnp.int32)[None, :]
        known = Tokens(positions=positions, valid=valid)
        mask = causal().bind(known, known)
        logits, _ = nnx.merge(graph, state)(row, positions=positions, mask=mask)
        return next_token_loss(
            logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), row, valid=valid
        )

    length = min(window, len(tokens) - 1) + 1
    total = 0.0
    for first in range(0, len(tokens) - 1, length - 1):
        part = tokens[first : first + length]
        row = np.zeros((1, length), np.int32)
        row[0, : len(part)] = part
        valid = np.arange(length)[None, :] < len(part)
        total += float(mean_loss(state, row, valid)) * (len(part) - 1)
    return math.exp(total / (len(tokens) - 1))
