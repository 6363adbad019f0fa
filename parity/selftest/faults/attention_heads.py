"""Faults of grouped-query attention: which kv head a query head reads, and the scale of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import model as llama
from parity.selftest.fault import Fault, Weights, in_layer
from parity.selftest.faulty_attention import attention_patches_in


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_head_maps(), *_merging(), *_scale()]


def _tiled(heads: np.ndarray, groups: int) -> np.ndarray:
    return heads % (len(heads) // groups)


def _first(heads: np.ndarray, groups: int) -> np.ndarray:
    return np.zeros_like(heads)


def _backwards(heads: np.ndarray, groups: int) -> np.ndarray:
    return (heads // groups)[::-1].copy()


def _one_astray(head: int) -> Callable[[np.ndarray, int], np.ndarray]:
    def heads_of(heads: np.ndarray, groups: int) -> np.ndarray:
        right = heads // groups
        return np.where(heads == head, (right + 1) % (right.max() + 1), right)

    return heads_of


def _head_maps() -> list[Fault]:
    def fault(family: str, kind: str, variant: str, layer: int | None, **changes: Any) -> Fault:
        tap = "attn_scores" if "key_heads" in changes else "attn_context"
        return Fault(
            family,
            kind,
            variant,
            f"layers.{layer or 0}.{tap}",
            "kv-head-map",
            patches=attention_patches_in(layer, **changes),
        )

    found = [
        fault(
            "G1", "kv heads tiled, not repeated", label, layer, key_heads=_tiled, value_heads=_tiled
        )
        for layer, label in ((None, "all layers"), (1, "layer 1"), (2, "layer 2"))
    ]
    found += [
        fault("G1", "keys alone tiled", "all layers", None, key_heads=_tiled),
        fault("G1", "values alone tiled", "all layers", None, value_heads=_tiled),
        fault("G1", "values alone tiled", "layer 2", 2, value_heads=_tiled),
        fault(
            "G2", "n_kv_heads taken as 1", "all layers", None, key_heads=_first, value_heads=_first
        ),
        fault("G2", "n_kv_heads taken as 1", "layer 1", 1, key_heads=_first, value_heads=_first),
        fault(
            "G3",
            "kv heads in reverse",
            "all layers",
            None,
            key_heads=_backwards,
            value_heads=_backwards,
        ),
    ]
    found += [
        fault(
            "G3",
            "one query head reads its neighbour's kv head",
            f"head {head}, layer {layer}",
            layer,
            key_heads=_one_astray(head),
            value_heads=_one_astray(head),
        )
        for head, layer in ((0, 0), (3, 1), (5, 2))
    ]
    found += [
        Fault(
            "G2",
            "kv projected to as many heads as queries",
            f"layer {layer}",
            f"layers.{layer}.k_proj",
            "kv-head-count",
            patches=in_layer(layer, lambda _: _repeated()),
        )
        for layer in (0, 1)
    ]
    return found


def _repeated() -> list[Any]:
    """Repeat k and v as soon as they are projected: three times the heads the config states."""
    linear = llama.Linear.__call__

    def project(self: Any, x: jax.Array) -> jax.Array:
        y = linear(self, x)
        # Of this model only k and v are 2 heads of 16 features wide.
        if y.shape[-1] != 32:
            return y
        heads = y.reshape(*y.shape[:-1], 2, 16)
        return jnp.repeat(heads, 3, axis=-2).reshape(*y.shape[:-1], 96)

    return [(llama.Linear, "__call__", project)]


def _merging() -> list[Fault]:
    def transposed(context: jax.Array) -> jax.Array:
        return context.swapaxes(2, 3).reshape(context.shape)

    def silenced(context: jax.Array) -> jax.Array:
        return context.at[:, :, 4].set(0)

    def rotated(context: jax.Array) -> jax.Array:
        return jnp.roll(context, 1, axis=2)

    return [
        Fault(
            "G4",
            kind,
            f"layer {layer}",
            f"layers.{layer}.{tap}",
            cause,
            patches=attention_patches_in(layer, **changes),
        )
        for kind, layer, tap, changes, cause in (
            ("heads merged feature by feature", 0, "o_proj", {"after": transposed}, "head-merge"),
            ("heads merged feature by feature", 2, "o_proj", {"after": transposed}, "head-merge"),
            ("heads merged out of order", 1, "o_proj", {"after": rotated}, "head-merge"),
            ("one head silenced", 1, "attn_context", {"context": silenced}, "head-silenced"),
            ("one head silenced", 2, "attn_context", {"context": silenced}, "head-silenced"),
        )
    ]


def _folded(weights: Weights) -> None:
    for name in weights:
        if name.endswith("q_proj.weight"):
            weights[name] = weights[name] * np.float32(0.25)


def _scale() -> list[Fault]:
    found = [
        Fault(
            "N4",
            kind,
            variant,
            f"layers.{layer or 0}.attn_scores",
            "score-scale",
            patches=attention_patches_in(layer, scale=scale),
            model=model,
        )
        for kind, variant, layer, scale, model in (
            ("scale by the model dim", "D = 90", None, lambda s: 90**-0.5, "base"),
            ("scale by the model dim", "D = 96", 1, lambda s: 96**-0.5, "square"),
            ("scale applied twice", "all layers", None, lambda s: s * s, "base"),
            ("scale applied twice", "layer 2", 2, lambda s: s * s, "base"),
            ("scale missing", "all layers", None, lambda s: 1.0, "base"),
            ("scale missing", "one kv head", None, lambda s: 1.0, "mqa"),
            ("scale a little off", "1.001", 2, lambda s: 1.001 * s, "base"),
        )
    ]
    found.append(
        Fault(
            "N4",
            "scale folded into the weights as well",
            "q_proj",
            "layers.0.q_proj",
            "weight-scaled",
            weights=_folded,
        )
    )
    return found
