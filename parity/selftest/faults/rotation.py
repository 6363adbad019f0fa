"""Faults of the rotation itself: which features turn together, how far, and in which order.

Shapes: B batch, T tokens, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama import model as llama
from jaxllama.rope import apply_rope
from parity.selftest.fault import Fault, Moment, Patches, Weights, in_layer, nth_calls

Rotation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# A layer rotates twice: queries, then keys.
QUERIES, KEYS = 0, 1


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_pairing(), *_rotation()]


def rotating(wrong: Rotation, *which: int, layer: int | None = None) -> Patches:
    """Return patches that rotate queries or keys, or both, in a wrong way."""
    return in_layer(layer, lambda _: [(llama, "apply_rope", nth_calls(apply_rope, wrong, *which))])


def neighbours(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate features 2i and 2i + 1 against each other, as Meta's own code does."""
    even, odd = x[..., 0::2].astype(cos.dtype), x[..., 1::2].astype(cos.dtype)
    c, s = cos[:, :, None, :], sin[:, :, None, :]
    return (
        jnp.stack([even * c - odd * s, odd * c + even * s], axis=-1)
        .reshape(x.shape)
        .astype(x.dtype)
    )


def _meta_order(
    *projections: str, layers: tuple[int, ...] = (0, 1, 2)
) -> Callable[[Weights], None]:
    """Leave q or k as Meta stores them: rows of a pair side by side."""

    def change(weights: Weights) -> None:
        for i in layers:
            for name in projections:
                key = f"model.layers.{i}.self_attn.{name}.weight"
                halves = weights[key].reshape(-1, 2, 8, weights[key].shape[1])
                weights[key] = halves.swapaxes(1, 2).reshape(weights[key].shape).copy()

    return change


def _pairing() -> list[Fault]:
    found = []
    for layer, label in ((None, "all layers"), (1, "layer 1"), (2, "layer 2")):
        first = layer or 0
        found.append(
            Fault(
                "R1",
                "neighbouring features rotated",
                label,
                f"layers.{first}.q_rope",
                "rope-pairing",
                patches=rotating(neighbours, QUERIES, KEYS, layer=layer),
            )
        )
    for layers, label in (((0, 1, 2), "all layers"), ((2,), "layer 2")):
        found.append(
            Fault(
                "R1",
                "q and k weights left in Meta order",
                label,
                f"layers.{layers[0]}.q_proj",
                "qk-permutation",
                weights=_meta_order("q_proj", "k_proj", layers=layers),
            )
        )
    for which, tap in ((QUERIES, "q_rope"), (KEYS, "k_rope")):
        found.append(
            Fault(
                "R2",
                "neighbouring features rotated in one of q and k",
                tap[0],
                f"layers.0.{tap}",
                "rope-pairing",
                patches=rotating(neighbours, which),
            )
        )
    for name, layers in (("q_proj", (0, 1, 2)), ("k_proj", (0, 1, 2)), ("k_proj", (1,))):
        found.append(
            Fault(
                "R2",
                "one of q and k left in Meta order",
                f"{name[0]}, from layer {layers[0]}",
                f"layers.{layers[0]}.{name}",
                "qk-permutation",
                weights=_meta_order(name, layers=layers),
            )
        )
    return found


def _partial(share: float) -> Rotation:
    """Rotate only the first pairs."""

    def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        turned = jnp.arange(cos.shape[-1]) < share * cos.shape[-1]
        cos = jnp.where(turned[None, None, :], cos, jnp.ones_like(cos))
        sin = jnp.where(turned[None, None, :], sin, jnp.zeros_like(sin))
        return apply_rope(x, cos, sin)

    return rotate


def _values_too(moment: Moment) -> Any:
    angles: list[jax.Array] = []
    attend = llama.attend

    def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        angles[:] = [cos, sin]
        return apply_rope(x, cos, sin)

    def attend_rotated(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, **options: Any) -> Any:
        return attend(q, k, apply_rope(v, *angles), mask, **options)

    return [(llama, "apply_rope", rotate), (llama, "attend", attend_rotated)]


def _rotation() -> list[Fault]:
    def fault(
        family: str,
        kind: str,
        variant: str,
        wrong: Rotation,
        *which: int,
        cause: str,
        layer: int | None = None,
    ) -> Fault:
        tap = "q_rope" if QUERIES in which else "k_rope"
        return Fault(
            family,
            kind,
            variant,
            f"layers.{layer or 0}.{tap}",
            cause,
            patches=rotating(wrong, *which, layer=layer),
        )

    def backwards(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return apply_rope(x, cos, -sin)

    def exchanged(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return apply_rope(x, sin, cos)

    def twice(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return apply_rope(apply_rope(x, cos, sin), cos, sin)

    def never(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return x

    def one_head(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return apply_rope(x, cos, sin).at[:, :, 1].set(x[:, :, 1])

    both = QUERIES, KEYS
    found = [
        fault(
            "R9",
            "part of the head rotated",
            f"{share:g}",
            _partial(share),
            *both,
            cause="rope-partial",
        )
        for share in (0.25, 0.5, 0.75)
    ]
    for layer in (0, 2):
        found.append(
            Fault(
                "R9",
                "values rotated too",
                f"layer {layer}",
                f"layers.{layer}.attn_context",
                "rope-on-values",
                patches=in_layer(layer, _values_too),
            )
        )
    found += [
        fault("R10", "rotation backwards", "q and k", backwards, *both, cause="rope-sign"),
        fault("R10", "rotation backwards", "k", backwards, KEYS, cause="rope-sign"),
        fault("R10", "rotation backwards", "layer 1", backwards, *both, cause="rope-sign", layer=1),
        fault("R13", "cos and sin exchanged", "q and k", exchanged, *both, cause="rope-cos-sin"),
        fault("R13", "rotated twice", "q", twice, QUERIES, cause="rope-twice"),
        fault("R13", "rotated twice", "layer 2", twice, *both, cause="rope-twice", layer=2),
        fault("R13", "not rotated", "q and k", never, *both, cause="rope-missing"),
        fault("R13", "not rotated", "k, layer 1", never, KEYS, cause="rope-missing", layer=1),
        fault("R13", "one head not rotated", "q head 1", one_head, QUERIES, cause="rope-missing"),
    ]
    return found
