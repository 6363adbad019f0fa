"""Faults of the key-value cache, seen when a prompt is fed in pieces and then token by token.

Shapes: B batch, T new tokens, S slots, K kv heads, H head dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxllama import model as llama
from jaxllama.cache import KVCache
from jaxllama.rope import apply_rope
from parity.inputs import DECODE_STEPS
from parity.selftest.fault import Fault, Moment, Patch, Patches, in_layer
from parity.selftest.faults.masks import masked
from parity.selftest.faults.rope import moved_positions
from parity.selftest.faulty_attention import attention_patches, softmax
from parity.subjects.jaxllama.run import JaxRun

write = KVCache.write
extend = KVCache.extend


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_history(), *_rotation(), *_slots(), *_dtypes(), *_merging(), *_writes()]


def _fault(*what: str, **more: Any) -> Fault:
    return Fault(*what, **({"mode": "decode"} | more))


def _own_slots(moment: Moment, slots: int) -> jax.Array:
    """Return which slots belong to the call's own tokens [B S]."""
    cache = moment.run._cache
    assert cache is not None
    own = jnp.arange(slots)[None, None, :] == cache.slots[:, :, None]
    return own.any(axis=1)


def _history() -> list[Fault]:
    def square(mask: jax.Array, moment: Moment) -> jax.Array:
        return mask & _own_slots(moment, mask.shape[2])[:, None, :]

    def unwritten(mask: jax.Array, moment: Moment) -> jax.Array:
        cache = moment.run._cache
        assert cache is not None
        return mask | ~cache.tokens().valid[:, None, :]

    def in_single_steps(wrong: Any) -> Any:
        return lambda mask, moment: wrong(mask, moment) if mask.shape[1] == 1 else mask

    first, flagged = "layers.0.attn_probs", ("mask",)
    return [
        *(
            _fault(
                "C1",
                "square mask hides the history",
                scenario,
                first,
                "cache-history-hidden",
                patches=masked(square),
                scenario=scenario,
                flagged=flagged,
                step=1,
            )
            for scenario in ("causal", "mixed_lengths")
        ),
        _fault(
            "C1",
            "square mask hides the history",
            "single tokens",
            first,
            "cache-history-hidden",
            patches=masked(in_single_steps(square)),
            flagged=flagged,
            step=2,
        ),
        *(
            _fault(
                "C2",
                "unwritten slots visible",
                scenario,
                first,
                "cache-unwritten-visible",
                patches=masked(unwritten),
                scenario=scenario,
            )
            for scenario in ("causal", "mixed_lengths")
        ),
        _fault(
            "C2",
            "unwritten slots visible",
            "single tokens",
            first,
            "cache-unwritten-visible",
            patches=masked(in_single_steps(unwritten)),
            step=2,
        ),
    ]


def _writing(change: Callable[..., KVCache], layer: int | None = None) -> Patches:
    return in_layer(layer, lambda _: [(KVCache, "write", change)])


def _rotation() -> list[Fault]:
    def patches(moment: Moment) -> list[Patch]:
        keys: list[jax.Array] = []

        def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
            keys[:] = [x]
            return apply_rope(x, cos, sin)

        def unrotated(self: KVCache, layer: Any, k: jax.Array, v: jax.Array) -> KVCache:
            return write(self, layer, keys[0], v)

        return [(llama, "apply_rope", rotate), (KVCache, "write", unrotated)]

    def again(moment: Moment) -> list[Patch]:
        angles: list[jax.Array] = []

        def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
            angles[:] = [cos, sin]
            return apply_rope(x, cos, sin)

        def twice(self: KVCache, layer: Any, k: jax.Array, v: jax.Array) -> KVCache:
            return write(self, layer, apply_rope(k, *angles), v)

        return [(llama, "apply_rope", rotate), (KVCache, "write", twice)]

    return [
        _fault(
            "C3",
            kind,
            f"layer {layer}",
            f"cache.{layer}.k",
            "cache-key-rotation",
            patches=in_layer(layer, make),
        )
        for kind, make in (("k cached before rotation", patches), ("k rotated twice", again))
        for layer in (0, 1)
    ]


def _slots() -> list[Fault]:
    def shared(self: KVCache, positions: jax.Array, valid: jax.Array, *rest: Any) -> KVCache:
        """Let every row go on where the longest one ends."""
        found = extend(self, positions, valid, *rest)
        base = jnp.broadcast_to(self.lengths.max(), self.lengths.shape)
        slots = base[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
        return dataclasses.replace(found, slots=jnp.where(valid, slots, self.capacity))

    def shared_positions(positions: jax.Array, moment: Moment) -> jax.Array:
        if moment.chunk < 1:
            return positions
        return jnp.broadcast_to(positions.max(axis=0, keepdims=True), positions.shape)

    def one_back(self: KVCache, positions: jax.Array, valid: jax.Array, *rest: Any) -> KVCache:
        """Overwrite the last token once the prompt is in."""
        found = extend(self, positions, valid, *rest)
        back = jnp.maximum(found.slots - 1, 0) if valid.shape[1] == 1 else found.slots
        return dataclasses.replace(found, slots=back)

    def clamped(self: KVCache, positions: jax.Array, valid: jax.Array, *rest: Any) -> KVCache:
        found = extend(self, positions, valid, *rest)
        last = self.capacity - 2
        return dataclasses.replace(
            found, slots=jnp.where(valid, jnp.minimum(found.slots, last), self.capacity)
        )

    def extending(change: Any) -> Patches:
        return lambda moment: [(KVCache, "extend", change)]

    return (
        [
            _fault(
                "C4",
                "ragged rows share one cache slot",
                scenario,
                "cache.0.k",
                "cache-slot-shared",
                patches=extending(shared),
                scenario=scenario,
                step=1,
            )
            for scenario in ("left_padded", "mixed_lengths")
        ]
        + [
            _fault(
                "C4",
                "ragged rows share one position",
                scenario,
                "layers.0.q_rope",
                "position-shared",
                patches=moved_positions(shared_positions),
                scenario=scenario,
                step=1,
                flagged=("positions",),
            )
            for scenario in ("left_padded", "mixed_lengths")
        ]
        + [
            _fault(
                "C7",
                "new token overwrites the last",
                "single tokens",
                "cache.0.k",
                "cache-slot-overwritten",
                patches=extending(one_back),
                step=2,
            ),
            _fault(
                "C7",
                "writes past the end clamped",
                "one slot short",
                "cache.0.k",
                "cache-slot-overwritten",
                patches=extending(clamped),
                step=DECODE_STEPS + 1,  # the last call: two pieces of the prompt come first
            ),
        ]
    )


def _dtypes() -> list[Fault]:
    def held_in(dtype: DTypeLike) -> Callable[[JaxRun], None]:
        def setup(run: JaxRun) -> None:
            assert run._cache is not None
            old = run._cache
            assert not isinstance(old.k, tuple) and not isinstance(old.v, tuple)
            run._cache = dataclasses.replace(old, k=old.k.astype(dtype), v=old.v.astype(dtype))

        return setup

    return [
        _fault(
            "C5",
            "cache of a narrower dtype, undeclared",
            f"{jnp.dtype(dtype).name} under {lane}",
            "cache.0.k",
            "cache-dtype",
            lane=lane,
            setup=held_in(dtype),
        )
        for lane, dtype in (
            ("f64", jnp.float32),
            ("f64", jnp.bfloat16),
            ("f32", jnp.bfloat16),
            ("f32", jnp.float16),
        )
    ]


def _merging() -> list[Fault]:
    """Weights over the history and over the call's own keys, computed apart and put together."""

    def merged(how: str) -> Callable[[Moment], list[Patch]]:
        def patches(moment: Moment) -> list[Patch]:
            if moment.chunk == 0:
                return []

            def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
                own = _own_slots(moment, scores.shape[-1])[:, None, None, :]
                parts = [softmax(scores, visible & own), softmax(scores, visible & ~own)]
                if how == "halves":
                    return (parts[0] + parts[1]) / 2
                # Each part is weighed by its sum of exponentials, but from its own maximum.
                total = [
                    jnp.sum(
                        jnp.where(
                            visible & g, jnp.exp(scores - _highest(scores, visible & g)), 0.0
                        ),
                        axis=-1,
                        keepdims=True,
                    )
                    for g in (own, ~own)
                ]
                return (parts[0] * total[0] + parts[1] * total[1]) / (total[0] + total[1])

            return attention_patches(weigh=weigh)

        return patches

    return [
        _fault(
            "C6",
            kind,
            f"layer {layer}",
            f"layers.{layer}.attn_probs",
            "softmax-merge",
            step=1,
            patches=in_layer(layer, merged(how)),
        )
        for kind, how in (
            ("partial softmaxes averaged", "halves"),
            ("partial softmaxes merged without a common maximum", "maxima"),
        )
        for layer in (0, 2)
    ]


def _highest(scores: jax.Array, visible: jax.Array) -> jax.Array:
    lowest = jnp.finfo(scores.dtype).min
    return jnp.max(jnp.where(visible, scores, lowest), axis=-1, keepdims=True)


def _writes() -> list[Fault]:
    def neighbour(self: KVCache, layer: Any, k: jax.Array, v: jax.Array) -> KVCache:
        return write(self, (layer + 1) % self.made_for[0], k, v)

    def exchanged(self: KVCache, layer: Any, k: jax.Array, v: jax.Array) -> KVCache:
        return write(self, layer, v, k)

    def late(self: KVCache, layer: Any, k: jax.Array, v: jax.Array) -> KVCache:
        """Forget the values of single tokens."""
        if k.shape[1] > 1:
            return write(self, layer, k, v)
        return write(self, layer, k, jnp.zeros_like(v))

    def rolled(self: KVCache, layer: Any, k: jax.Array, v: jax.Array) -> KVCache:
        found = write(self, layer, k, v)
        if k.shape[1] > 1:
            return found
        assert not isinstance(found.k, tuple)
        return dataclasses.replace(
            found, k=found.k.at[layer].set(jnp.roll(found.k[layer], 1, axis=0))
        )

    rows = {"scenario": "mixed_lengths", "step": 2}
    return [
        _fault(
            "C8",
            "written to the next layer's cache",
            "all layers",
            "cache.0.k",
            "cache-layer",
            patches=_writing(neighbour),
        ),
        _fault(
            "C8",
            "written to the next layer's cache",
            "layer 1",
            "cache.1.k",
            "cache-layer",
            patches=_writing(neighbour, 1),
        ),
        _fault(
            "C8",
            "keys and values exchanged",
            "layer 2",
            "cache.2.k",
            "cache-exchanged",
            patches=_writing(exchanged, 2),
        ),
        _fault(
            "C8",
            "values of single tokens not written",
            "all layers",
            "cache.0.v",
            "cache-not-written",
            patches=_writing(late),
            step=2,
        ),
        _fault(
            "C8",
            "rows of the cache out of order",
            "layer 0",
            "cache.0.k",
            "cache-rows",
            patches=_writing(rolled, 0),
            **rows,
        ),
    ]
