"""Faults of the weights: the wrong ones, in the wrong place, or not all of their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from parity.selftest.fault import Fault, Weights

Change = Callable[[np.ndarray], np.ndarray]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# The tap that shows a weight first.
TAPS = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    **{f"self_attn.{name}": name for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"mlp.{name}": name for name in ("gate_proj", "up_proj", "down_proj")},
}


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [
        *_tied(),
        *_exchanged(),
        *_neighbours(),
        *_shapes(),
        *_missing(),
        *_rounded(),
        *_others(),
        *_vocabulary(),
    ]


def _name(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{module}.weight"


def _tap(layer: int, module: str) -> str:
    return f"layers.{layer}.{TAPS[module]}"


def _changed(name: str, change: Change) -> Callable[[Weights], None]:
    def apply(weights: Weights) -> None:
        weights[name] = np.ascontiguousarray(change(weights[name]), weights[name].dtype)

    return apply


def _all(change: Change) -> Callable[[Weights], None]:
    def apply(weights: Weights) -> None:
        for name in weights:
            _changed(name, change)(weights)

    return apply


def _swap(a: str, b: str) -> Callable[[Weights], None]:
    def apply(weights: Weights) -> None:
        weights[a], weights[b] = weights[b], weights[a]

    return apply


def _tied() -> list[Fault]:
    def random(weights: Weights) -> None:
        shape = weights[EMBEDDING].shape
        drawn = np.random.default_rng(0).standard_normal(shape) / np.sqrt(shape[1])
        weights[HEAD] = drawn.astype(np.float32)

    def stale(weights: Weights) -> None:
        """The head as it was before the embedding was trained a little further."""
        moved = 1 + 1e-3 * np.random.default_rng(1).standard_normal(weights[EMBEDDING].shape)
        weights[HEAD] = (weights[EMBEDDING] * moved).astype(np.float32)

    def zero(weights: Weights) -> None:
        weights[HEAD] = np.zeros_like(weights[EMBEDDING])

    return [
        Fault(
            "W1",
            "tied head not tied",
            variant,
            "logits",
            "head-untied",
            weights=change,
            model="tied",
        )
        for variant, change in (("random", random), ("stale", stale), ("zero", zero))
    ]


def _exchanged() -> list[Fault]:
    found = []
    for kind, a, b, family, cause in (
        ("gate and up swapped", "mlp.gate_proj", "mlp.up_proj", "W2", "weight-swapped"),
        ("k and v swapped", "self_attn.k_proj", "self_attn.v_proj", "W7", "weight-swapped"),
    ):
        for layer in (0, 1, 2):
            change = _swap(_name(layer, a), _name(layer, b))
            found.append(
                Fault(family, kind, f"layer {layer}", _tap(layer, a), cause, weights=change)
            )
    return found


def _neighbours() -> list[Fault]:
    def copied(module: str, to: int, source: int) -> Callable[[Weights], None]:
        def apply(weights: Weights) -> None:
            weights[_name(to, module)] = weights[_name(source, module)].copy()

        return apply

    def whole(to: int, source: int) -> Callable[[Weights], None]:
        def apply(weights: Weights) -> None:
            for module in TAPS:
                copied(module, to, source)(weights)

        return apply

    def rolled(weights: Weights) -> None:
        for module in TAPS:
            kept = [weights[_name(i, module)] for i in range(3)]
            for i in range(3):
                weights[_name(i, module)] = kept[(i + 1) % 3]

    found = [
        Fault(
            "W3",
            "a tensor of the neighbouring layer",
            f"{module} of layer {to}",
            _tap(to, module),
            "weight-neighbour",
            weights=copied(module, to, source),
        )
        for module, to, source in (
            ("self_attn.q_proj", 0, 1),
            ("self_attn.v_proj", 1, 2),
            ("self_attn.o_proj", 2, 1),
            ("mlp.down_proj", 1, 0),
            ("mlp.up_proj", 2, 1),
            ("input_layernorm", 1, 2),
            ("post_attention_layernorm", 0, 1),
        )
    ]
    found += [
        Fault(
            "W3",
            "a whole layer loaded into its neighbour",
            f"{source} into {to}",
            f"layers.{to}.input_layernorm",
            "weight-neighbour",
            weights=whole(to, source),
        )
        for to, source in ((0, 1), (2, 1))
    ]
    found.append(
        Fault(
            "W3",
            "layers counted from 1",
            "all layers",
            "layers.0.input_layernorm",
            "weight-neighbour",
            weights=rolled,
        )
    )
    return found


def _shapes() -> list[Fault]:
    def transposed(w: np.ndarray) -> np.ndarray:
        return w.T

    def refolded(w: np.ndarray) -> np.ndarray:
        """The other memory order read into the right shape."""
        return w.T.reshape(w.shape)

    return [
        *(
            Fault(
                "W4",
                "square weight transposed",
                f"{module} of layer {layer}",
                _tap(layer, module),
                "weight-transposed",
                weights=_changed(_name(layer, module), transposed),
                model="square",
            )
            for module, layer in (
                ("self_attn.q_proj", 0),
                ("self_attn.o_proj", 1),
                ("self_attn.q_proj", 2),
            )
        ),
        *(
            Fault(
                "W4",
                "memory order of a weight misread",
                f"{module} of layer {layer}",
                _tap(layer, module),
                "weight-refolded",
                weights=_changed(_name(layer, module), refolded),
            )
            for module, layer in (("self_attn.k_proj", 1), ("mlp.down_proj", 2))
        ),
    ]


def _missing() -> list[Fault]:
    def half(axis: int) -> Change:
        def change(w: np.ndarray) -> np.ndarray:
            kept = w.copy()
            kept[(slice(None),) * axis + (slice(w.shape[axis] // 2, None),)] = 0
            return kept

        return change

    found = [
        Fault(
            "W5",
            "one shard missing, zeros left",
            f"half of {module}, layer {layer}",
            _tap(layer, module),
            "weight-zeros",
            weights=_changed(_name(layer, module), half(axis)),
        )
        for module, layer, axis in (
            ("self_attn.q_proj", 0, 0),
            ("self_attn.o_proj", 1, 1),
            ("mlp.gate_proj", 2, 0),
            ("mlp.down_proj", 0, 1),
        )
    ]
    found.append(
        Fault(
            "W5",
            "one shard missing, zeros left",
            "half of the embedding",
            "embed",
            "weight-zeros",
            weights=_changed(EMBEDDING, half(1)),
        )
    )
    found += [
        Fault(
            "W5",
            "a tensor left at zero",
            f"{module} of layer {layer}",
            _tap(layer, module),
            "weight-zeros",
            weights=_changed(_name(layer, module), np.zeros_like),
        )
        for module, layer in (("self_attn.v_proj", 1), ("mlp.up_proj", 2))
    ]
    found += [
        Fault(
            "W5",
            "norm weights left at one",
            f"{module} of layer {layer}",
            _tap(layer, module),
            "norm-weight",
            weights=_changed(_name(layer, module), np.ones_like),
        )
        for module, layer in (("input_layernorm", 0), ("post_attention_layernorm", 1))
    ]
    return found


def _rounded() -> list[Fault]:
    def through(dtype: Any) -> Change:
        return lambda w: w.astype(dtype).astype(w.dtype)

    def int8(w: np.ndarray) -> np.ndarray:
        step = np.abs(w).max(axis=-1, keepdims=True) / 127
        return np.round(w / step) * step

    f16, bf16 = np.float16, ml_dtypes.bfloat16
    return [
        Fault(
            "W6",
            f"weights rounded through {name}",
            f"all, in {lane}",
            "embed",
            "weight-rounded",
            weights=_all(through(dtype)),
            lane=lane,
            model=model,
        )
        for name, dtype, lane, model in (
            ("float16", f16, "f64", "base"),
            ("float16", f16, "f32", "base"),
            ("float16", f16, "f64", "tied"),
            ("bfloat16", bf16, "f64", "base"),
            ("bfloat16", bf16, "f32", "base"),
        )
    ] + [
        Fault(
            "W6",
            f"one weight rounded through {name}",
            f"{module} of layer {layer}",
            _tap(layer, module),
            "weight-rounded",
            weights=_changed(_name(layer, module), change),
        )
        for name, change, module, layer in (
            ("float16", through(f16), "mlp.down_proj", 2),
            ("float16", through(f16), "self_attn.k_proj", 1),
            ("bfloat16", through(bf16), "self_attn.v_proj", 0),
            ("int8", int8, "mlp.gate_proj", 1),
            ("int8", int8, "self_attn.q_proj", 2),
        )
    ]


def _others() -> list[Fault]:
    def one_element(w: np.ndarray) -> np.ndarray:
        changed = w.copy()
        changed[3, 5] = -changed[3, 5]
        return changed

    def doubled(w: np.ndarray) -> np.ndarray:
        return 2 * w

    def heads_permuted(w: np.ndarray) -> np.ndarray:
        return np.roll(w.reshape(-1, 16, w.shape[1]), 1, axis=0).reshape(w.shape)

    def rows_moved(w: np.ndarray) -> np.ndarray:
        return np.roll(w, 1, axis=0)

    return [
        Fault(
            "W8",
            "one element of a weight flipped",
            f"{module} of layer {layer}",
            _tap(layer, module),
            "weight-element",
            weights=_changed(_name(layer, module), one_element),
        )
        for module, layer in (("self_attn.v_proj", 0), ("mlp.up_proj", 2))
    ] + [
        Fault(
            "W8",
            "adapter merged twice",
            "v_proj of layer 1",
            "layers.1.v_proj",
            "weight-scaled",
            weights=_changed(_name(1, "self_attn.v_proj"), doubled),
        ),
        Fault(
            "W8",
            "heads of q in another order",
            "layer 0",
            "layers.0.q_proj",
            "weight-permuted",
            weights=_changed(_name(0, "self_attn.q_proj"), heads_permuted),
        ),
        Fault(
            "W8",
            "vocabulary shifted by one",
            "embedding",
            "embed",
            "token-shift",
            weights=_changed(EMBEDDING, rows_moved),
        ),
        Fault(
            "W8",
            "vocabulary shifted by one",
            "head",
            "logits",
            "token-shift",
            weights=_changed(HEAD, rows_moved),
        ),
    ]


def _vocabulary() -> list[Fault]:
    """Rows of the vocabulary that text has none of: special tokens stand last."""

    def rows(where: slice, value: Callable[[np.ndarray], Any]) -> Change:
        def change(w: np.ndarray) -> np.ndarray:
            kept = w.copy()
            kept[where] = value(w)
            return kept

        return change

    last, one, specials = slice(-1, None), slice(200, 201), slice(256, None)
    means: Change = rows(specials, lambda w: w[:256].mean(0))
    return [
        Fault("W9", "rows of the vocabulary lost", variant, tap, cause, **more)
        for variant, tap, cause, more in (
            (
                "the last row zero",
                "embed",
                "weight-zeros",
                {"weights": _changed(EMBEDDING, rows(last, lambda w: 0))},
            ),
            (
                "special tokens zero",
                "embed",
                "weight-zeros",
                {
                    "weights": _changed(EMBEDDING, rows(specials, lambda w: 0)),
                    "scenario": "vocabulary",
                },
            ),
            (
                "special tokens clamped to the row before",
                "embed",
                "vocabulary-rows",
                {
                    "weights": _changed(EMBEDDING, rows(specials, lambda w: w[255])),
                    "scenario": "vocabulary",
                },
            ),
            (
                "special tokens at the mean, in the head too",
                "embed",
                "vocabulary-rows",
                {"weights": _changed(EMBEDDING, means), "model": "tied", "scenario": "vocabulary"},
            ),
            (
                "one row that no text has, doubled",
                "embed",
                "vocabulary-rows",
                {
                    "weights": _changed(EMBEDDING, rows(one, lambda w: 2 * w[200])),
                    "scenario": "vocabulary",
                    "lane": "f32",
                },
            ),
            (
                "the head's last rows those before",
                "logits",
                "vocabulary-rows",
                {"weights": _changed(HEAD, rows(specials, lambda w: w[248:256]))},
            ),
        )
    ]
