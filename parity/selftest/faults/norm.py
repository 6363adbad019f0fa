"""Faults of norms, of their precision, and of the products' precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import model as llama
from jaxllama.dtypes import at_least_float32
from parity.selftest.fault import Fault, Patches, Weights, in_head, in_layer, nth_calls, with_fields
from parity.selftest.faulty_attention import attention_patches_in

# A layer has two norms, in this order; the head has one.
INPUT, POST = 0, 1
TAPS = {INPUT: "input_layernorm", POST: "post_attention_layernorm"}
Norm = Callable[[Any, jax.Array], jax.Array]


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_epsilon(), *_upcast(), *_products(), *_swapped(), *_formula()]


def _norming(wrong: Norm, *which: int, layer: int | None = None) -> Patches:
    original = llama.RMSNorm.__call__
    return in_layer(
        layer, lambda _: [(llama.RMSNorm, "__call__", nth_calls(original, wrong, *which))]
    )


def _final(wrong: Norm) -> Patches:
    return in_head(lambda _: [(llama.RMSNorm, "__call__", wrong)])


def _with_epsilon(eps: float) -> Norm:
    def norm(self: Any, x: jax.Array) -> jax.Array:
        wide = x.astype(at_least_float32(x.dtype))
        normed = wide / jnp.sqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
        return normed.astype(x.dtype) * _weight(self, x)

    return norm


def _weight(self: Any, x: jax.Array) -> jax.Array:
    return self.weight[...].astype(x.dtype)[None, None, :]


def _epsilon() -> list[Fault]:
    found = [
        Fault(
            "N1",
            "eps is a default",
            f"{eps:g}",
            "layers.0.input_layernorm",
            "norm-eps",
            config=with_fields(rms_norm_eps=eps),
            model=model,
        )
        for eps, model in ((1e-6, "base"), (1e-8, "base"), (1.1e-5, "base"), (1e-6, "tied"))
    ]
    found += [
        Fault(
            "N1",
            "eps is a default in one norm",
            f"{TAPS[which]} of layer {layer}",
            f"layers.{layer}.{TAPS[which]}",
            "norm-eps",
            patches=_norming(_with_epsilon(1e-6), which, layer=layer),
        )
        for which, layer in ((POST, 0), (INPUT, 2), (POST, 2))
    ]
    found.append(
        Fault(
            "N1",
            "eps is a default in one norm",
            "the final norm",
            "norm",
            "norm-eps",
            patches=_final(_with_epsilon(1e-6)),
        )
    )
    found.append(
        Fault(
            "R6",
            "eps read under another spelling",
            "1e-6 for a missing layer_norm_epsilon",
            "layers.0.input_layernorm",
            "norm-eps",
            config=with_fields(rms_norm_eps=1e-6),
        )
    )
    return found


def _narrow(self: Any, x: jax.Array) -> jax.Array:
    """Sum squares one after another in x's own dtype, as a loop without upcast does."""
    values = np.asarray(x)
    total = np.zeros(x.shape[:-1], values.dtype)
    for i in range(x.shape[-1]):  # on the host: as operations these would be compiled one by one
        total = total + values[..., i] * values[..., i]
    mean = jnp.asarray(total) / jnp.asarray(x.shape[-1], x.dtype)
    eps = jnp.asarray(self.eps, x.dtype)
    return x * jax.lax.rsqrt(mean + eps)[..., None] * _weight(self, x)


def _upcast() -> list[Fault]:
    common: dict[str, Any] = {
        "family": "N2",
        "kind": "norm without upcast",
        "model": "wide",
        "lane": "bf16",
        "cause": "norm-upcast",
    }
    return [
        Fault(
            variant="every norm",
            expected="layers.0.input_layernorm",
            patches=_norming(_narrow, INPUT, POST),
            **common,
        ),
        Fault(
            variant="post_attention_layernorm of layer 1",
            expected="layers.1.post_attention_layernorm",
            patches=_norming(_narrow, POST, layer=1),
            **common,
        ),
        Fault(variant="the final norm", expected="norm", patches=_final(_narrow), **common),
    ]


def _tf32(x: jax.Array) -> jax.Array:
    """Round float32 to the 10 mantissa bits that tensor cores keep of it."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    rounded = (bits + jnp.uint32(0x1000)) & jnp.uint32(0xFFFFE000)
    return jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(x.dtype)


def _bf16(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(x.dtype)


def _product(rounded: Callable[[jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    def linear(self: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,oi->...o", rounded(x), rounded(self.weight[...].astype(x.dtype)))

    return linear


def _multiplying(wrong: Any, which: Iterable[int], layer: int | None) -> Patches:
    """Return patches of some of a layer's products: q, k, v, o, gate, up, down."""
    linear, calls = llama.Linear.__call__, tuple(which)
    return in_layer(layer, lambda _: [(llama.Linear, "__call__", nth_calls(linear, wrong, *calls))])


def _products() -> list[Fault]:
    found = []
    for name, rounded in (("TF32", _tf32), ("bf16", _bf16)):
        for layer, which, tap in (
            (None, range(7), "layers.0.q_proj"),
            (1, range(7), "layers.1.q_proj"),
            (2, (6,), "layers.2.down_proj"),
        ):
            found.append(
                Fault(
                    "N3",
                    f"products in {name}",
                    f"first at {tap}",
                    tap,
                    "matmul-precision",
                    lane="f32",
                    patches=_multiplying(_product(rounded), which, layer),
                )
            )
        found.append(
            Fault(
                "N3",
                f"scores in {name}",
                "all layers",
                "layers.0.attn_scores",
                "matmul-precision",
                lane="f32",
                patches=attention_patches_in(None, operand=rounded),
            )
        )
    return found


def _exchange(weights: Weights, a: str, b: str) -> None:
    weights[a], weights[b] = weights[b], weights[a]


def _swapped() -> list[Fault]:
    def swap(layer: int) -> Callable[[Weights], None]:
        prefix = f"model.layers.{layer}"
        names = f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight"
        return lambda weights: _exchange(weights, *names)

    found = [
        Fault(
            "N5",
            "the two norms of a block swapped",
            f"layer {layer}",
            f"layers.{layer}.input_layernorm",
            "weight-swapped",
            weights=swap(layer),
        )
        for layer in (0, 2)
    ]
    found.append(
        Fault(
            "N5",
            "final norm missing",
            "identity",
            "norm",
            "norm-missing",
            patches=_final(lambda self, x: x),
        )
    )
    return found


def _formula() -> list[Fault]:
    def wide(x: jax.Array) -> jax.Array:
        return x.astype(at_least_float32(x.dtype))

    def centred(self: Any, x: jax.Array) -> jax.Array:
        y = wide(x) - jnp.mean(wide(x), axis=-1, keepdims=True)
        return _with_epsilon(self.eps)(self, y.astype(x.dtype))

    def unweighted(self: Any, x: jax.Array) -> jax.Array:
        return _with_epsilon(self.eps)(self, x) / _weight(self, x)

    def plus_one(self: Any, x: jax.Array) -> jax.Array:
        return unweighted(self, x) * (1 + _weight(self, x))

    def outside(self: Any, x: jax.Array) -> jax.Array:
        root = jnp.sqrt(jnp.mean(wide(x) ** 2, axis=-1, keepdims=True))
        return (wide(x) / (root + self.eps)).astype(x.dtype) * _weight(self, x)

    def summed(self: Any, x: jax.Array) -> jax.Array:
        root = jnp.sqrt(jnp.sum(wide(x) ** 2, axis=-1, keepdims=True) + self.eps)
        return (wide(x) / root).astype(x.dtype) * _weight(self, x)

    return [
        Fault(
            "N6",
            kind,
            f"{TAPS[which]} of layer {layer}",
            f"layers.{layer}.{TAPS[which]}",
            cause,
            patches=_norming(wrong, which, layer=layer),
        )
        for kind, wrong, which, layer, cause in (
            ("mean subtracted, as in LayerNorm", centred, INPUT, 0, "norm-centred"),
            ("mean subtracted, as in LayerNorm", centred, POST, 1, "norm-centred"),
            ("norm weight not applied", unweighted, INPUT, 1, "norm-weight"),
            ("norm weight not applied", unweighted, POST, 2, "norm-weight"),
            ("norm weight plus one, as in Gemma", plus_one, INPUT, 0, "norm-weight"),
            ("eps outside the root", outside, POST, 0, "norm-eps"),
            ("sum of squares in place of their mean", summed, INPUT, 2, "norm-sum"),
        )
    ]
