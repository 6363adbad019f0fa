"""What a model writes after prompts, greedily; under another mask than its own, too.

Shapes: B batch, T prompt columns, S cache slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxllama.cache import KVCache
from jaxllama.masks import Mask, Tokens, explicit
from jaxllama.model import Llama

# Prompts that are continued together.
MOST_ROWS = 32


def write_after(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    eos: Sequence[int],
    mask: Mask | None = None,
) -> list[list[int]]:
    """Return each prompt's likeliest next tokens, without the one that ends a text.

    Args:
        model: the model.
        prompts: token ids.
        lengths: most tokens to write after each.
        eos: tokens that end a row.
        mask: what queries see, in a batch padded on the left whose pads lie in the cache, too.
            If None, `jaxllama.generate` writes, whose caches hold no pads.
    """
    rows: list[list[int]] = []
    while len(rows) < len(prompts):
        count = _together(model, prompts, lengths, len(rows))
        here = slice(len(rows), len(rows) + count)
        part, most = prompts[here], max(lengths[here])
        if mask is None:
            rows += model.generate(part, max_new_tokens=most, eos_ids=eos).rows()
        else:
            rows += _write_under(model, part, most, mask, eos)
    found = []
    for row, length in zip(rows, lengths, strict=True):
        ends = [i for i, token in enumerate(row) if token in eos]
        found.append(row[: min([length, *ends])])
    return found


def _together(
    model: Llama, prompts: Sequence[Sequence[int]], lengths: Sequence[int], first: int
) -> int:
    """Return how many rows from one on are a batch: the longest prompt and the longest text of any
    two have to fit the context together.
    """
    count, prompt, text = 0, 0, 0
    for ids, length in zip(prompts[first:], lengths[first:], strict=True):
        prompt, text = max(prompt, len(ids)), max(text, length)
        needed = prompt + text
        if count == MOST_ROWS or (count and model.config.within_context(needed) < needed):
            break
        count += 1
    return count


def _write_under(
    model: Llama, prompts: Sequence[Sequence[int]], most: int, mask: Mask, eos: Sequence[int]
) -> list[list[int]]:
    """Write under a mask: pads are read into the cache, as by code that forgets what they are."""
    T, B = max(map(len, prompts)), len(prompts)
    tokens, real = np.zeros((B, T), np.int32), np.zeros((B, T + most), np.bool_)
    tokens[:] = model.config.pad_token_id or 0
    for row, ids in enumerate(prompts):
        tokens[row, T - len(ids) :] = ids
        real[row, T - len(ids) :] = True
    positions = np.where(real[:, :T], real[:, :T].cumsum(axis=1) - 1, 0).astype(np.int32)
    cache = KVCache.empty(model.config, B, T + most, model.dtype, apart=model.form != "stacked")
    known, done, written = jax.device_put(real), np.zeros(B, np.bool_), []
    for _ in range(most):
        token, cache = _read(
            model, jax.device_put(tokens), jax.device_put(positions), known, cache, mask
        )
        written.append(np.asarray(token))
        done |= np.isin(written[-1], list(eos))
        if done.all():
            break
        tokens, positions = written[-1][:, None], positions[:, -1:] + np.int32(1)
    return np.stack(written, axis=1).tolist()


@partial(jax.jit, donate_argnames=("cache",))
def _read(
    model: Llama,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    real: Bool[Array, "B S"],
    cache: KVCache,
    mask: Mask,
) -> tuple[Int[Array, " B"], KVCache]:
    """Read tokens, pads among them, and return the likeliest after each row's last."""
    start, (batch, count) = cache.lengths[0], tokens.shape
    cache = cache.settle().extend(positions, jnp.ones((batch, count), jnp.bool_))
    keys = cache.tokens()
    # A slot that holds nothing yet is no pad: nothing sees it, whatever the mask is.
    held = jnp.broadcast_to(keys.valid[:, None, :], (batch, count, keys.shape[1]))
    keys = dataclasses.replace(keys, valid=keys.valid & real)
    valid = jax.lax.dynamic_slice_in_dim(real, start, count, axis=1)
    queries = Tokens(positions, valid, jnp.zeros_like(positions))
    bound = (mask & explicit(held)).bind(queries, keys, empty_row="zero")
    x, filled = model.hidden(tokens, positions=positions, mask=bound, cache=cache)
    assert filled is not None
    return jnp.argmax(model.head(x[:, -1:])[:, 0], axis=-1).astype(jnp.int32), filled
