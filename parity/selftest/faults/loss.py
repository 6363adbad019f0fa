"""Faults of the loss, which spoil every gradient.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxllama.masks import Tokens
from parity.selftest.fault import Fault, backwards, number_families
from parity.subjects.jaxllama.grad import loss_of


def faults() -> list[Fault]:
    """Return the injections of this family."""
    tokens, mean = "loss-tokens", "loss-mean"
    found = [
        backwards(kind, variant, "loss", cause, loss=loss, scenario=scenario)
        for kind, variant, loss, cause, scenario in (
            ("pads in the loss", "pads counted", pads_counted, tokens, "packed"),
            ("pads in the loss", "left-padded", pads_counted, tokens, "left_padded"),
            ("pads in the loss", "predicted", pads_predicted, tokens, "right_padded"),
            ("pads in the loss", "predicting", pads_predicting, tokens, "left_padded"),
            ("documents joined in the loss", "packed", documents_joined, tokens, "packed"),
            ("documents joined in the loss", "pads too", all_joined, tokens, "packed"),
            ("targets not shifted", "its own id", unshifted, tokens, "right_padded"),
            ("targets shifted twice", "packed", shifted_twice, tokens, "packed"),
            ("targets shifted twice", "left-padded", shifted_twice, tokens, "left_padded"),
            ("loss over all positions", "B T", over_all, mean, "right_padded"),
            ("loss over all positions", "real ones", over_real, mean, "right_padded"),
            ("loss not divided", "sum", summed, mean, "packed"),
            ("mean of means", "rows", of_rows, mean, "right_padded"),
        )
    ]
    return number_families([found], start=1)


def of_each(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the cross-entropy [B T] of targets [B T]."""
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def following(tokens: Tokens) -> jax.Array:
    """Return which columns but the last predict the next one, of rows whose pads stand together."""
    valid = jnp.asarray(tokens.valid)
    counted = valid[:, 1:] & valid[:, :-1]
    if tokens.segments is not None:
        documents = jnp.asarray(tokens.segments)
        counted &= documents[:, 1:] == documents[:, :-1]
    return counted


def total(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Return the right terms' sum."""
    terms = of_each(logits[:, :-1], ids[:, 1:])
    return jnp.where(following(tokens), terms, jnp.zeros_like(terms)).sum()


def pads_counted(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Count pads, as targets and as what predicts."""
    return loss_of(logits, ids, replace(tokens, valid=jnp.ones_like(tokens.valid)))


def pads_predicted(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Count pads as targets."""
    return jnp.mean(of_each(logits[:, :-1], ids[:, 1:]), where=jnp.asarray(tokens.valid)[:, :-1])


def pads_predicting(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Count pads that stand before a real token."""
    return jnp.mean(of_each(logits[:, :-1], ids[:, 1:]), where=jnp.asarray(tokens.valid)[:, 1:])


def documents_joined(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Let each document's end predict the next one's beginning."""
    return loss_of(logits, ids, replace(tokens, segments=None))


def all_joined(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Count every column but the last."""
    return jnp.mean(of_each(logits[:, :-1], ids[:, 1:]))


def unshifted(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Let each token predict itself."""
    return jnp.mean(of_each(logits, ids), where=jnp.asarray(tokens.valid))


def shifted_twice(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Shift targets that are shifted already."""
    return jnp.mean(of_each(logits[:, :-2], ids[:, 2:]), where=following(tokens)[:, 1:])


def over_all(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Divide by the number of all positions."""
    return total(logits, ids, tokens) / jnp.asarray(ids.size, logits.dtype)


def over_real(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Divide by the number of real tokens."""
    return total(logits, ids, tokens) / jnp.asarray(tokens.valid).sum().astype(logits.dtype)


def summed(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Do not divide."""
    return total(logits, ids, tokens)


def of_rows(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Average the rows' means."""
    terms = of_each(logits[:, :-1], ids[:, 1:])
    return jnp.mean(terms, axis=1, where=following(tokens)).mean()
