"""Faults of the loss, which spoil every gradient.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxllama.masks import Tokens
from parity.selftest.fault import Fault, backwards, numbered
from parity.subjects.jax_grad import loss_of


def faults() -> list[Fault]:
    """Return the injections of this family."""

    def pads_counted(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
        return loss_of(logits, ids, replace(tokens, valid=jnp.ones_like(tokens.valid)))

    def documents_joined(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
        return loss_of(logits, ids, replace(tokens, segments=None))

    def of_each(logits: jax.Array, targets: jax.Array) -> jax.Array:
        chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    def unshifted(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
        return jnp.mean(of_each(logits, ids), where=tokens.valid)

    def over_all(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
        # Of right-padded rows: neighbours stand side by side.
        counted = tokens.valid[:, 1:] & tokens.valid[:, :-1]
        terms = jnp.where(counted, of_each(logits[:, :-1], ids[:, 1:]), 0.0)
        return terms.sum() / jnp.asarray(ids.size, logits.dtype)

    def of_rows(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
        counted = tokens.valid[:, 1:] & tokens.valid[:, :-1]
        return jnp.mean(of_each(logits[:, :-1], ids[:, 1:]), axis=1, where=counted).mean()

    found = [
        backwards(kind, variant, "loss", cause, loss=loss, scenario=scenario)
        for kind, variant, loss, cause, scenario in (
            ("pads in the loss", "pads counted", pads_counted, "loss-tokens", "packed"),
            ("pads in the loss", "left-padded", pads_counted, "loss-tokens", "left_padded"),
            ("documents joined in the loss", "packed", documents_joined, "loss-tokens", "packed"),
            ("targets not shifted", "its own id", unshifted, "loss-tokens", "right_padded"),
            ("loss over all positions", "B T", over_all, "loss-mean", "right_padded"),
            ("mean of means", "rows", of_rows, "loss-mean", "right_padded"),
        )
    ]
    return numbered([found], start=1)
