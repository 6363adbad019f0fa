"""Faults of a kernel that is given the right mask and does the wrong thing with it.

Shapes: B batch, N heads, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.selftest.fault import Fault
from parity.selftest.faults.masks import masked
from parity.selftest.faulty_attention import Weigh, attention_patches_in, softmax


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_kernels(), *_fills()]


def _kernel(family: str, kind: str, variant: str, weigh: Weigh, cause: str, **more: Any) -> Fault:
    layer = more.pop("layer", None)
    more.setdefault("expected", f"layers.{layer or 0}.attn_probs")
    return Fault(
        family=family,
        kind=kind,
        variant=variant,
        patches=attention_patches_in(layer, weigh=weigh),
        cause=cause,
        **more,
    )


def _kernels() -> list[Fault]:
    def added(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return jax.nn.softmax(scores + visible.astype(scores.dtype), axis=-1)

    def unmasked(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return jax.nn.softmax(scores, axis=-1)

    def multiplied(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(visible, scores, jnp.zeros_like(scores)), axis=-1)

    def after_softmax(scores: jax.Array, visible: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(scores, axis=-1)
        return jnp.where(visible, weights, jnp.zeros_like(weights))

    def open_head(head: int) -> Weigh:
        def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
            open_for = jnp.arange(scores.shape[1])[None, :, None, None] == head
            return softmax(scores, visible | open_for)

        return weigh

    return [
        _kernel("M3", "0/1 mask added to the scores", "all layers", added, "mask-added"),
        _kernel("M3", "0/1 mask added to the scores", "layer 1", added, "mask-added", layer=1),
        _kernel(
            "M3", "mask multiplied into the scores", "all layers", multiplied, "mask-multiplied"
        ),
        _kernel("M1", "kernel drops the mask", "layer 1", unmasked, "mask-dropped", layer=1),
        _kernel("M1", "kernel drops the mask", "layer 2", unmasked, "mask-dropped", layer=2),
        _kernel(
            "K3", "mask applied after softmax", "all layers", after_softmax, "softmax-renormalised"
        ),
        _kernel(
            "M14",
            "one head sees the future",
            "head 0, layer 0",
            open_head(0),
            "mask-one-head",
            layer=0,
        ),
        _kernel(
            "M14",
            "one head sees the future",
            "head 5, layer 2",
            open_head(5),
            "mask-one-head",
            layer=2,
        ),
    ]


def _fills() -> list[Fault]:
    def filled(value: float) -> Weigh:
        def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
            return jax.nn.softmax(jnp.where(visible, scores, jnp.asarray(value, scores.dtype)), -1)

        return weigh

    def planes(scores: jax.Array, visible: jax.Array) -> jax.Array:
        """Add one saturated plane for causality and one for padding."""
        lowest = jnp.finfo(scores.dtype).min
        plane = jnp.where(visible, jnp.zeros_like(scores), lowest)
        return jax.nn.softmax(scores + (plane + plane), axis=-1)

    found = [
        _kernel(
            "M7",
            "fill too weak for the scores",
            f"{value:g}, layer {layer}",
            filled(value),
            "mask-fill-weak",
            layer=layer,
        )
        for value, layer in ((-10.0, 0), (-50.0, 0), (-50.0, 2), (-300.0, 1))
    ]
    found += [
        _on_empty_rows(fault)
        for fault in (
            *(
                _kernel(
                    "M7",
                    "fill overflows to -inf on an empty row",
                    f"layer {layer}",
                    filled(-np.inf),
                    "mask-empty-row",
                    layer=layer,
                    expected=f"layers.{layer + 1}.attn_context",
                )
                for layer in (0, 1)
            ),
            _kernel(
                "M6",
                "two saturated planes summed",
                "all layers",
                planes,
                "mask-empty-row",
                expected="layers.1.attn_probs",
            ),
            _kernel(
                "M6",
                "two saturated planes summed",
                "layer 1",
                planes,
                "mask-empty-row",
                layer=1,
                expected="layers.2.attn_context",
            ),
        )
    ]
    return found


def _on_empty_rows(fault: Fault) -> Fault:
    """Let pads see nothing, as a padding mask on both axes has it: their NaN spreads from there."""
    wrong = fault.patches
    assert wrong is not None
    empty = masked(lambda mask, m: mask & jnp.asarray(m.inputs.valid)[:, :, None])
    return replace(
        fault, scenario="left_padded", patches=lambda moment: [*empty(moment), *wrong(moment)]
    )
