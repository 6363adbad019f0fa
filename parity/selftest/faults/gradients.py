"""Faults of gradients: no value of the forward pass shows them.

Shapes: B batch, T tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama import model as llama
from jaxllama.dtypes import at_least_float32
from parity.selftest.fault import Fault, Patch, Patches, backwards, in_layer, number_families
from parity.selftest.faulty_attention import attention_patches_in, softmax

LAYERS = 3
LAST = LAYERS - 1
stopped = jax.lax.stop_gradient


def faults() -> list[Fault]:
    """Return the injections of this family."""
    groups = _stopped(), _scaled(), _norms(), _activations(), _tied(), _residuals()
    return number_families(groups, start=2)


def _linears(wrong: Callable, *which: int, layer: int | None = None) -> Patches:
    """Return patches of some of a layer's products: q, k, v, o, gate, up, down.

    Shapes of the taps are asked for first, by a pass of its own: calls come in rounds.
    """
    return in_layer(
        layer, lambda _: [(llama.Linear, "__call__", _in_rounds(llama.Linear, wrong, 7, which))]
    )


def _in_rounds(owner: type, wrong: Callable, calls: int, which: tuple[int, ...]) -> Callable:
    original, count = owner.__call__, -1

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return (wrong if count % calls in which else original)(*args, **kwargs)

    return function


def _in_head(*patches: Patch) -> Patches:
    return lambda moment: patches if moment.layer is None else ()


def _stopped() -> list[Fault]:
    linear = llama.Linear.__call__

    def detached(self: Any, x: jax.Array) -> jax.Array:
        return stopped(linear(self, x))

    def frozen(self: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,oi->...o", x, stopped(self.weight[...].astype(x.dtype)))

    def looked_up(self: Any, tokens: jax.Array, dtype: Any) -> jax.Array:
        return stopped(self.weight[...][tokens].astype(dtype))

    def weight(layer: int, module: str) -> str:
        return f"grad.model.layers.{layer}.{module}.weight"

    def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return stopped(softmax(scores, visible))

    kind, cause = "gradient stopped", "gradient-stopped"
    return [
        backwards(kind, variant, expected, cause, patches=patches)
        for variant, expected, patches in (
            ("k_proj, every layer", weight(LAST, "self_attn.k_proj"), _linears(detached, 1)),
            ("o_proj of layer 1", weight(1, "self_attn.o_proj"), _linears(detached, 3, layer=1)),
            ("weight of up_proj", weight(LAST, "mlp.up_proj"), _linears(frozen, 5)),
            ("weight of q, layer 0", weight(0, "self_attn.q_proj"), _linears(frozen, 0, layer=0)),
            ("weights", f"grad.layers.{LAST}.attn_scores", attention_patches_in(None, weigh=weigh)),
            (
                "embedding",
                "grad.model.embed_tokens.weight",
                _in_head((llama.Embedding, "__call__", looked_up)),
            ),
        )
    ]


@jax.custom_vjp
def _damped(x: jax.Array, factor: Any) -> jax.Array:
    return x


_damped.defvjp(
    lambda x, factor: (x, factor), lambda factor, g: (g * jnp.asarray(factor, g.dtype), None)
)


def damping(factor: float, place: int) -> Patches:
    """Return patches that multiply the gradient into a layer."""
    layer_call = llama.DecoderLayer.__call__

    def wrong(self: Any, x: jax.Array, *rest: Any) -> Any:
        return layer_call(self, _damped(x, factor), *rest)

    return in_layer(place, lambda _: [(llama.DecoderLayer, "__call__", wrong)])


def _scaled() -> list[Fault]:
    linear = llama.Linear.__call__

    def weight(self: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,oi->...o", x, _damped(self.weight[...].astype(x.dtype), 2.0))

    def output(self: Any, x: jax.Array) -> jax.Array:
        return _damped(linear(self, x), 0.5)

    kind, cause = "gradient scaled", "gradient-scaled"
    return [
        backwards(kind, variant, expected, cause, patches=patches)
        for variant, expected, patches in (
            ("0.9 into layer 1", "grad.layers.1.input", damping(0.9, 1)),
            ("0.999 into layer 2", "grad.layers.2.input", damping(0.999, 2)),
            (
                "weight of down_proj doubled",
                f"grad.model.layers.{LAST}.mlp.down_proj.weight",
                _linears(weight, 6),
            ),
            (
                "gate_proj halved in layer 1",
                "grad.model.layers.1.mlp.gate_proj.weight",
                _linears(output, 4, layer=1),
            ),
        )
    ]


def _norms() -> list[Fault]:
    def constant(self: Any, x: jax.Array) -> jax.Array:
        wide = x.astype(at_least_float32(x.dtype))
        scale = stopped(jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps))
        return (wide * scale).astype(x.dtype) * self.weight[...].astype(x.dtype)[None, None, :]

    def norming(*which: int, layer: int | None = None) -> Patches:
        return in_layer(
            layer,
            lambda _: [(llama.RMSNorm, "__call__", _in_rounds(llama.RMSNorm, constant, 2, which))],
        )

    kind, cause = "norm's scale a constant", "gradient-norm-scale"
    return [
        backwards(kind, variant, expected, cause, patches=patches)
        for variant, expected, patches in (
            ("input_layernorm", f"grad.layers.{LAST}.input", norming(0)),
            ("post_attention_layernorm of 0", "grad.layers.0.post_attention", norming(1, layer=0)),
            (
                "final norm",
                f"grad.layers.{LAST}.output",
                _in_head((llama.RMSNorm, "__call__", constant)),
            ),
        )
    ]


def _activations() -> list[Fault]:
    def with_slope(slope: Callable[[jax.Array], jax.Array]) -> Callable:
        silu = jax.custom_vjp(jax.nn.silu)
        silu.defvjp(lambda x: (jax.nn.silu(x), x), lambda x, g: (g * slope(x),))

        def mlp(self: Any, x: jax.Array, tap: Any) -> jax.Array:
            gate, up = tap("gate_proj", self.gate_proj(x)), tap("up_proj", self.up_proj(x))
            hidden = silu(gate.astype(at_least_float32(x.dtype))).astype(x.dtype) * up
            return tap("down_proj", self.down_proj(tap("mlp_act", hidden)))

        return mlp

    def in_mlp(slope: Callable[[jax.Array], jax.Array], layer: int | None) -> Patches:
        return in_layer(layer, lambda _: [(llama.MLP, "__call__", with_slope(slope))])

    kind, cause = "activation's derivative wrong", "gradient-activation"
    return [
        backwards(kind, variant, f"grad.layers.{expected}.gate_proj", cause, patches=patches)
        for variant, expected, patches in (
            ("sigmoid", LAST, in_mlp(jax.nn.sigmoid, None)),
            ("straight through, layer 1", 1, in_mlp(jnp.ones_like, 1)),
            ("gelu's, layer 0", 0, in_mlp(_slope_of_gelu, 0)),
        )
    ]


def _slope_of_gelu(x: jax.Array) -> jax.Array:
    def gelu(y: jax.Array) -> jax.Array:
        return jax.nn.gelu(y, approximate=False)

    return jax.jvp(gelu, (x,), (jnp.ones_like(x),))[1]


def _tied() -> list[Fault]:
    def looked_up(self: Any, tokens: jax.Array, dtype: Any) -> jax.Array:
        return stopped(self.weight[...][tokens].astype(dtype))

    def head(self: Any, x: jax.Array, *, tap: Any) -> jax.Array:
        x = tap("norm", self.norm(x))
        weight = stopped(self.embed_tokens.weight[...].astype(self.dtype))
        wide = at_least_float32(self.dtype)
        return tap("logits", jnp.einsum("btd,vd->btv", x, weight, preferred_element_type=wide))

    return [
        backwards(
            "tied gradient incomplete",
            variant,
            "grad.model.embed_tokens.weight",
            "gradient-tied",
            model="tied",
            patches=_in_head(patch),
        )
        for variant, patch in (
            ("no embedding", (llama.Embedding, "__call__", looked_up)),
            ("no head", (llama.Llama, "head", head)),
        )
    ]


def _residuals() -> list[Fault]:
    def layer(past_attention: Callable, into_mlp: Callable) -> Callable:
        def wrong(self: Any, x: Any, cos_sin: Any, mask: Any, cache: Any, *rest: Any) -> Any:
            x, tap = rest[-1]("input", x), rest[-1]
            normed = tap("input_layernorm", self.input_layernorm(x))
            attended, cache = self.self_attn(normed, cos_sin, mask, cache, *rest)
            x = tap("post_attention", past_attention(x) + attended)
            normed = self.post_attention_layernorm(into_mlp(x))
            normed = tap("post_attention_layernorm", normed)
            return tap("output", x + self.mlp(normed, tap)), cache

        return wrong

    def same(x: jax.Array) -> jax.Array:
        return x

    def residual(past: Callable, into: Callable, place: int | None) -> Patches:
        return in_layer(place, lambda _: [(llama.DecoderLayer, "__call__", layer(past, into))])

    kind, cause = "residual's gradient cut", "gradient-residual"
    return [
        backwards(kind, variant, expected, cause, patches=patches)
        for variant, expected, patches in (
            ("past attention", f"grad.layers.{LAST}.input", residual(stopped, same, None)),
            ("into the MLP of layer 1", "grad.layers.1.post_attention", residual(same, stopped, 1)),
        )
    ]
