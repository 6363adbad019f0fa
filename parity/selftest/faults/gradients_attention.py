"""Faults of attention's and of the rotation's backward pass.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, G = N // K, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import model as llama
from jaxllama.rope import apply_rope
from parity.selftest.fault import (
    Fault,
    Moment,
    Patch,
    Patches,
    backwards,
    in_layer,
    number_families,
)
from parity.selftest.faults.gradients import LAST
from parity.selftest.faulty_attention import attention_patches, attention_patches_in, softmax


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return number_families((_attention(), _rotations()), start=8)


def _attention() -> list[Fault]:
    @jax.custom_vjp
    def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return softmax(scores, visible)

    weigh.defvjp(lambda s, visible: ((p := softmax(s, visible)), p), lambda p, g: (p * g, None))

    def infinite(moment: Moment) -> list[Patch]:
        real = jnp.asarray(moment.inputs.valid)[:, None, :, None]

        def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
            visible = visible & real  # so that pads see nothing
            fill = jnp.where(visible, 0.0, -jnp.inf).astype(scores.dtype)
            probs = jax.nn.softmax(scores + fill, axis=-1)
            return jnp.where(jnp.isnan(probs), jnp.zeros_like(probs), probs)

        return attention_patches(weigh=weigh)

    def shared(reduce: Callable[[jax.Array], jax.Array], keys: bool, values: bool) -> Patches:
        return in_layer(None, lambda _: [(llama, "attend", _attend(reduce, keys, values))])

    def mean(g: jax.Array) -> jax.Array:
        return g.mean(3)

    scores = f"grad.layers.{LAST}.attn_scores"
    return [
        backwards(
            "softmax's gradient incomplete",
            "no row sum",
            scores,
            "gradient-softmax",
            patches=attention_patches_in(None, weigh=weigh),
        ),
        backwards(
            "softmax's gradient incomplete",
            "no row sum in layer 1",
            "grad.layers.1.attn_scores",
            "gradient-softmax",
            patches=attention_patches_in(1, weigh=weigh),
        ),
        backwards(
            "infinite fill",
            "rows of pads",
            f"grad.layers.{LAST}.k_rope",
            "gradient-infinite-fill",
            scenario="left_padded",
            patches=in_layer(None, infinite),
        ),
        *(
            backwards(
                "kv heads' gradients not summed",
                variant,
                f"grad.layers.{LAST}.{tap}",
                "gradient-kv-heads",
                patches=shared(reduce, keys, values),
            )
            for variant, tap, reduce, keys, values in (
                ("mean, keys and values", "k_rope", mean, True, True),
                ("mean, values", "v_proj", mean, False, True),
                ("first head, keys", "k_rope", lambda g: g[:, :, :, 0], True, False),
            )
        ),
    ]


def _attend(reduce: Callable[[jax.Array], jax.Array], keys: bool, values: bool) -> Callable:
    """Return an attention whose keys' or values' gradients [B S K G H] are reduced so."""

    def repeated(held: jax.Array, wrong: bool, G: int) -> jax.Array:
        B, S, K, H = held.shape

        def forward(x: jax.Array) -> jax.Array:
            return jnp.repeat(x, G, axis=2)

        if not wrong:
            return forward(held)
        function = jax.custom_vjp(forward)
        function.defvjp(
            lambda x: (forward(x), None), lambda _, g: (reduce(g.reshape(B, S, K, G, H)),)
        )
        return function(held)

    def attend(q: Any, k: Any, v: Any, mask: Any, *, tap: Any, **options: Any) -> jax.Array:
        G = q.shape[2] // k.shape[2]
        visible = (mask if isinstance(mask, jax.Array) else mask.to_bool())[:, None]
        k, v = repeated(k, keys, G), repeated(v, values, G)
        scale = np.asarray(options["scale"], q.dtype)
        scores = tap("attn_scores", jnp.einsum("btnh,bsnh->bnts", q, k) * scale)
        probs = tap("attn_probs", softmax(scores, visible))
        return tap("attn_context", jnp.einsum("bnts,bsnh->btnh", probs, v))

    return attend


def _rotations() -> list[Fault]:
    def turning(back: Callable[..., jax.Array]) -> Callable:
        function = jax.custom_vjp(apply_rope)
        function.defvjp(
            lambda x, cos, sin: (apply_rope(x, cos, sin), (cos, sin)),
            lambda angles, g: (back(g, *angles), None, None),
        )
        return function

    def rotating(back: Callable[..., jax.Array], *which: int, layer: int | None = None) -> Patches:
        def patches(_: Any) -> list[Patch]:
            wrong, count = turning(back), -1

            def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
                nonlocal count
                count += 1
                return (wrong if count % 2 in which else apply_rope)(x, cos, sin)

            return [(llama, "apply_rope", rotate)]

        return in_layer(layer, patches)

    def unturned(g: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return g

    kind, cause = "rotation's gradient not turned back", "gradient-rotation"
    return [
        backwards(kind, variant, expected, cause, patches=patches)
        for variant, expected, patches in (
            ("q and k", f"grad.layers.{LAST}.k_proj", rotating(apply_rope, 0, 1)),
            ("q, layer 1", "grad.layers.1.q_proj", rotating(apply_rope, 0, layer=1)),
            ("k, not at all", f"grad.layers.{LAST}.k_proj", rotating(unturned, 1)),
        )
    ]
