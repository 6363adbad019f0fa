"""Differences that are no faults: the checker must stay silent."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama import model as llama
from jaxllama.cache import KVCache
from jaxllama.dtypes import at_least_float32
from parity.selftest.fault import Fault, Weights, everywhere
from parity.selftest.faulty_attention import attention_patches_in, softmax
from parity.subjects.jaxllama.run import JaxRun


def controls() -> list[Fault]:
    """Return every benign difference, where it could be taken for a fault."""
    return [*_logits(), *_pads(), *_sums(), *_caches(), *_peaked()]


def _control(kind: str, **more: Any) -> Fault:
    settings: dict[str, Any] = {"family": "Z", "variant": "benign", "expected": "", **more}
    return Fault(kind=kind, **settings)


def _logits() -> list[Fault]:
    def centred(weights: Weights) -> None:
        """Move every token's logits by one number, which no probability notices."""
        head = weights["lm_head.weight"]
        wide = head.astype("float64")
        weights["lm_head.weight"] = (wide - wide.mean(axis=0)).astype(head.dtype)

    return [
        *(_control("centred unembedding", weights=centred, lane=lane) for lane in ("f32", "bf16")),
        *(_control("near-tied top-1", model="near_tied", lane=lane) for lane in ("f32", "bf16")),
    ]


def _pads() -> list[Fault]:
    def uniform(scores: jax.Array, visible: jax.Array) -> jax.Array:
        """Give a row that sees nothing the mean of all values, as many kernels do."""
        empty = ~visible.any(axis=-1, keepdims=True)
        even = jnp.asarray(1 / scores.shape[-1], scores.dtype)
        return jnp.where(empty, even, softmax(scores, visible))

    def other_token(self: Any, tokens: jax.Array, dtype: Any) -> jax.Array:
        return embed(self, jnp.where(tokens == 258, 7, tokens), dtype)

    embed = llama.Embedding.__call__
    padded = ("right_padded", "left_padded", "mixed_lengths")
    return [
        _control(kind, scenario=scenario, patches=patches, lane=lane)
        for kind, patches in (
            ("mean of values on pads' rows", attention_patches_in(None, weigh=uniform)),
            ("another id on pads", everywhere((llama.Embedding, "__call__", other_token))),
        )
        for scenario in padded
        for lane in ("f64", "bf16")
    ]


def _sums() -> list[Fault]:
    def reversed_product(self: Any, x: jax.Array) -> jax.Array:
        weight = self.weight[...].astype(x.dtype)
        return jnp.einsum("...i,oi->...o", x[..., ::-1], weight[:, ::-1])

    def two_parts(self: Any, x: jax.Array) -> jax.Array:
        """Add the products of two shards, as tensor parallelism does."""
        weight, half = self.weight[...].astype(x.dtype), x.shape[-1] // 2
        wide = at_least_float32(x.dtype)
        parts = (slice(None, half), slice(half, None))
        products = [
            jnp.einsum("...i,oi->...o", x[..., p], weight[:, p], preferred_element_type=wide)
            for p in parts
        ]
        return (products[0] + products[1]).astype(x.dtype)

    return [
        _control(kind, lane=lane, patches=everywhere((llama.Linear, "__call__", linear)))
        for kind, linear in (
            ("products summed from the other end", reversed_product),
            ("products of two shards added", two_parts),
        )
        for lane in ("f64", "f32", "bf16")
    ] + [
        _control("attention with repeated kv heads", lane=lane, patches=attention_patches_in(None))
        for lane in ("f64", "f32", "bf16")
    ]


def _caches() -> list[Fault]:
    def wider(run: JaxRun) -> None:
        assert run._cache is not None
        old = run._cache.stacked()
        assert not isinstance(old.k, tuple) and not isinstance(old.v, tuple)
        run._cache = dataclasses.replace(
            old, k=old.k.astype(jnp.float32), v=old.v.astype(jnp.float32)
        )

    def larger(run: JaxRun) -> None:
        assert run._cache is not None
        cache, config = run._cache, run._model.config
        run._cache = KVCache.empty(config, len(cache.lengths), cache.capacity + 9, cache.dtype)

    return [
        _control("cache wider than the model", lane="bf16", mode="decode", setup=wider),
        *(
            _control("cache with room to spare", lane=lane, mode="decode", setup=larger, scenario=s)
            for lane in ("f64", "bf16")
            for s in ("causal", "mixed_lengths")
        ),
    ]


def _peaked() -> list[Fault]:
    """Attention that is all on few keys, and keys whose weights underflow."""
    return [
        _control("attention sinks", model="peaked", lane=lane, scenario=scenario)
        for lane in ("f64", "f32", "bf16")
        for scenario in ("causal", "left_padded")
    ]
