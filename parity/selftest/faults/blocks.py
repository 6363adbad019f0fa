"""Faults of activations, of the residual stream, and of both ends of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxllama import model as llama
from jaxllama.taps import Tapper
from parity.selftest.fault import Fault, Patches, everywhere, in_head, in_layer, replaced_in
from parity.selftest.faulty_attention import Weigh, attention_patches_in, softmax


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_activations(), *_wiring(), *_softmax(), *_ends()]


def _activations() -> list[Fault]:
    def mlp(act: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[int], Patches]:
        def call(self: Any, x: jax.Array, tap: Any) -> jax.Array:
            gate, up = tap("gate_proj", self.gate_proj(x)), tap("up_proj", self.up_proj(x))
            return tap("down_proj", self.down_proj(tap("mlp_act", act(gate, up).astype(x.dtype))))

        return lambda layer: in_layer(layer, lambda _: [(llama.MLP, "__call__", call)])

    return [
        Fault(
            family,
            kind,
            f"layer {layer}",
            f"layers.{layer}.mlp_act",
            cause,
            patches=mlp(act)(layer),
        )
        for family, kind, layer, act, cause in (
            (
                "A1",
                "GELU for SiLU",
                0,
                lambda g, u: jax.nn.gelu(g, approximate=False) * u,
                "activation",
            ),
            (
                "A1",
                "GELU for SiLU",
                2,
                lambda g, u: jax.nn.gelu(g, approximate=False) * u,
                "activation",
            ),
            ("A1", "tanh GELU for SiLU", 1, lambda g, u: jax.nn.gelu(g) * u, "activation"),
            (
                "A1",
                "sigmoid(1.702 x) for SiLU",
                1,
                lambda g, u: g * jax.nn.sigmoid(1.702 * g) * u,
                "activation",
            ),
            ("A1", "ReLU for SiLU", 2, lambda g, u: jax.nn.relu(g) * u, "activation"),
            (
                "A2",
                "activation on up in place of gate",
                0,
                lambda g, u: g * jax.nn.silu(u),
                "gate-order",
            ),
            (
                "A2",
                "activation on up in place of gate",
                2,
                lambda g, u: g * jax.nn.silu(u),
                "gate-order",
            ),
            ("A3", "gate without activation", 1, lambda g, u: g * u, "activation"),
            (
                "A3",
                "activations clipped",
                1,
                lambda g, u: jnp.clip(jax.nn.silu(g) * u, -1, 1),
                "activation-clipped",
            ),
        )
    ]


def _wiring() -> list[Fault]:
    def layer_call(
        attention_in: Callable[[Any, Any], Any] = lambda x, normed: x,
        mlp_in: Callable[[Any, Any], Any] = lambda before, after: after,
        mlp_base: Callable[[Any, Any], Any] = lambda x, normed: x,
        weight: float = 1.0,
    ) -> Any:
        """Build a decoder layer that adds to, or reads from, the wrong place."""

        def call(
            self: Any,
            x: Any,
            cos_sin: Any,
            mask: Any,
            cache: Any,
            index: Any,
            backend: Any,
            tap: Any,
        ) -> Any:
            before = x = tap("input", x)
            normed = tap("input_layernorm", self.input_layernorm(x))
            attended, cache = self.self_attn(normed, cos_sin, mask, cache, index, backend, tap)
            x = tap("post_attention", attention_in(x, normed) + weight * attended)
            normed = self.post_attention_layernorm(mlp_in(before, x))
            normed = tap("post_attention_layernorm", normed)
            return tap("output", mlp_base(x, normed) + self.mlp(normed, tap)), cache

        return call

    return [
        Fault(
            "B1",
            kind,
            f"layer {layer}",
            f"layers.{layer}.{tap}",
            cause,
            patches=replaced_in(layer, (llama.DecoderLayer, "__call__", call)),
        )
        for kind, layer, tap, call, cause in (
            (
                "residual taken after the norm",
                0,
                "post_attention",
                layer_call(attention_in=lambda x, normed: normed),
                "residual",
            ),
            (
                "residual around attention missing",
                1,
                "post_attention",
                layer_call(attention_in=lambda x, normed: jnp.zeros_like(x)),
                "residual",
            ),
            (
                "residual around the MLP missing",
                1,
                "output",
                layer_call(mlp_base=lambda x, normed: jnp.zeros_like(x)),
                "residual",
            ),
            (
                "residual around the MLP taken after the norm",
                2,
                "output",
                layer_call(mlp_base=lambda x, normed: normed),
                "residual",
            ),
            (
                "MLP beside attention, not after it",
                0,
                "post_attention_layernorm",
                layer_call(mlp_in=lambda before, after: before),
                "parallel-block",
            ),
            (
                "MLP beside attention, not after it",
                2,
                "post_attention_layernorm",
                layer_call(mlp_in=lambda before, after: before),
                "parallel-block",
            ),
            ("attention's output scaled", 2, "post_attention", layer_call(weight=0.5), "residual"),
        )
    ]


def _softmax() -> list[Fault]:
    def narrow(dtype: Any) -> Weigh:
        return lambda scores, visible: softmax(scores.astype(dtype), visible).astype(scores.dtype)

    def off_by_one(scores: jax.Array, visible: jax.Array) -> jax.Array:
        """Add 1 to the sum of exponentials, as if every row had a sink."""
        shifted = jnp.where(visible, scores, -jnp.inf)
        top = jnp.maximum(jnp.max(shifted, axis=-1, keepdims=True), 0.0)
        e = jnp.where(visible, jnp.exp(shifted - top), 0.0)
        return e / (jnp.sum(e, axis=-1, keepdims=True) + jnp.exp(-top))

    def base_2(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return softmax(scores * jnp.log(jnp.asarray(2.0, scores.dtype)), visible)

    def over_queries(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return jnp.swapaxes(softmax(jnp.swapaxes(scores, 2, 3), jnp.swapaxes(visible, 2, 3)), 2, 3)

    def capped(scores: jax.Array) -> jax.Array:
        return 5 * jnp.tanh(scores / 5)

    def biased(scores: jax.Array) -> jax.Array:
        """ALiBi: the farther the key, the less."""
        T, S = scores.shape[-2:]
        distance = (jnp.arange(T)[:, None] - jnp.arange(S)[None, :]).astype(scores.dtype)
        return scores - 0.01 * distance[None, None]

    def fault(
        kind: str, variant: str, layer: int, cause: str, lane: str = "f64", **changes: Any
    ) -> Fault:
        tap = "attn_scores" if "scores" in changes else "attn_probs"
        return Fault(
            "K1",
            kind,
            f"{variant}, layer {layer}",
            f"layers.{layer}.{tap}",
            cause,
            lane=lane,
            patches=attention_patches_in(layer, **changes),
        )

    return [
        fault(
            "softmax in a narrower dtype",
            "bf16",
            0,
            "softmax-precision",
            weigh=narrow(jnp.bfloat16),
        ),
        fault(
            "softmax in a narrower dtype", "f32", 1, "softmax-precision", weigh=narrow(jnp.float32)
        ),
        fault(
            "softmax in a narrower dtype",
            "bf16 under f32",
            2,
            "softmax-precision",
            "f32",
            weigh=narrow(jnp.bfloat16),
        ),
        fault("softmax with one added to its sum", "sink", 0, "softmax-sink", weigh=off_by_one),
        fault("softmax to the base 2", "exp2", 1, "softmax-base", weigh=base_2),
        fault("softmax over the wrong axis", "queries", 2, "softmax-axis", weigh=over_queries),
        fault("scores capped, as in Gemma 2", "5", 0, "score-cap", scores=capped),
        fault("scores capped, as in Gemma 2", "5", 2, "score-cap", scores=capped),
        fault(
            "distance subtracted from scores, as in ALiBi", "0.01", 1, "score-bias", scores=biased
        ),
    ]


def _ends() -> list[Fault]:
    embed, head = llama.Embedding.__call__, llama.Llama.head

    def scaled(self: Any, tokens: Any, dtype: Any) -> Any:
        return embed(self, tokens, dtype) * jnp.sqrt(jnp.asarray(90.0, dtype))

    def neighbour(self: Any, tokens: Any, dtype: Any) -> Any:
        return embed(self, jnp.maximum(tokens - 1, 0), dtype)

    def changed(change: Callable[[jax.Array], jax.Array]) -> Patches:
        def call(self: Any, x: Any, *, tap: Any) -> Any:
            def tap_changed(name: str, value: jax.Array) -> jax.Array:
                return tap(name, change(value) if name == "logits" else value)

            return head(self, x, tap=cast(Tapper, tap_changed))

        return in_head(lambda _: [(llama.Llama, "head", call)])

    return [
        Fault(
            "E1",
            "embedding scaled, as in Gemma",
            "sqrt(D)",
            "embed",
            "embedding-scaled",
            patches=everywhere((llama.Embedding, "__call__", scaled)),
        ),
        Fault(
            "E1",
            "token ids off by one",
            "id - 1",
            "embed",
            "token-shift",
            patches=everywhere((llama.Embedding, "__call__", neighbour)),
        ),
        Fault(
            "L1",
            "logits capped, as in Gemma 2",
            "3",
            "logits",
            "logits-cap",
            patches=changed(lambda x: 3 * jnp.tanh(x / 3)),
        ),
        Fault(
            "L1",
            "logits divided by a temperature",
            "0.9",
            "logits",
            "logits-scale",
            patches=changed(lambda x: x / 0.9),
        ),
        Fault(
            "L1",
            "logits rounded to bfloat16",
            "f64",
            "logits",
            "logits-rounded",
            patches=changed(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)),
        ),
        Fault(
            "L1",
            "logits rounded to bfloat16",
            "f32",
            "logits",
            "logits-rounded",
            patches=changed(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)),
            lane="f32",
        ),
        Fault(
            "L1",
            "last logits cut off",
            "-inf for padded entries",
            "logits",
            "logits-masked",
            patches=changed(lambda x: x.at[..., -3:].set(-jnp.inf)),
        ),
    ]
