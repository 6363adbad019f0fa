"""Faults of the angles: frequencies, their precision, positions.

Shapes: B batch, T tokens, N heads, H head dim, R = H / 2 rotated pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import model as llama
from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.rope import inv_freq, rope_cos_sin
from parity.selftest.fault import Fault, Moment, Patches, everywhere

TABLE = ("rope.inv_freq",)


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_table(), *_precision(), *_positions()]


def _configured(family: str, kind: str, variant: str, cause: str, **fields: Any) -> Fault:
    return Fault(
        family,
        kind,
        variant,
        "layers.0.q_rope",
        cause,
        flagged=TABLE,
        config=lambda config: config.replace(**fields),
    )


def _scaled(kind: str, **fields: Any) -> Callable[[LlamaConfig], LlamaConfig]:
    def change(config: LlamaConfig) -> LlamaConfig:
        assert config.rope_scaling is not None and config.rope_scaling.kind == kind
        return config.replace(rope_scaling=replace(config.rope_scaling, **fields))

    return change


def _table() -> list[Fault]:
    found = []
    for theta in (1e4, 1e6, 4.99e5):
        fault = _configured(
            "R3", "theta falls back to a default", f"{theta:g}", "rope-theta", rope_theta=theta
        )
        found.append(fault)
    for model in ("plain", "linear", "mqa"):
        fault = _configured(
            "R3", "theta falls back to a default", "1e4", "rope-theta", rope_theta=1e4
        )
        found.append(replace(fault, model=model))
    found.append(replace(found[0], scenario="long_positions"))
    ignored = _configured("R4", "rope scaling ignored", "llama3", "rope-scaling", rope_scaling=None)
    found += [ignored, replace(ignored, variant="linear", model="linear")]
    found.append(replace(ignored, scenario="long_positions"))
    for field, value in (
        ("factor", 32.0),
        ("low_freq_factor", 2.0),
        ("high_freq_factor", 2.0),
        ("original_max_position_embeddings", 4096),
    ):
        fault = _configured("R5", "wrong scaling factors", f"{field}={value:g}", "rope-scaling")
        found.append(replace(fault, config=_scaled("llama3", **{field: value})))
    fault = _configured("R5", "wrong scaling factors", "linear factor=2", "rope-scaling")
    found.append(replace(fault, model="linear", config=_scaled("linear", factor=2.0)))
    as_linear = RopeScaling(kind="linear", factor=8.0)
    found.append(
        _configured(
            "R5",
            "scaling of another type",
            "linear 8 for llama3",
            "rope-scaling",
            rope_scaling=as_linear,
        )
    )
    found.append(
        _configured(
            "R6",
            "rope_parameters read as absent",
            "theta 1e4, no scaling",
            "rope-theta",
            rope_theta=1e4,
            rope_scaling=None,
        )
    )
    for kind, variant, wrong, cause in (
        ("exponent lacks its factor 2", "i/H", _half_exponent, "rope-theta"),
        ("scaling applied the wrong way round", "times", _multiplied, "rope-scaling"),
        ("frequencies in falling order of index", "reversed", _reversed, "rope-frequencies"),
    ):
        fault = _configured("R11", kind, variant, cause)
        found.append(replace(fault, config=None, patches=everywhere((llama, "inv_freq", wrong))))
    return found


def _half_exponent(config: LlamaConfig) -> np.ndarray:
    pairs = np.arange(config.head_dim // 2) / config.head_dim
    return inv_freq(config.replace(rope_theta=1.0, rope_scaling=None)) * config.rope_theta**-pairs


def _multiplied(config: LlamaConfig) -> np.ndarray:
    plain = inv_freq(config.replace(rope_scaling=None))
    return plain * (plain / inv_freq(config))


def _reversed(config: LlamaConfig) -> np.ndarray:
    return inv_freq(config)[::-1].copy()


def _precision() -> list[Fault]:
    found = []

    def held_in(dtype: Any) -> Patches:
        def rounded(config: LlamaConfig) -> np.ndarray:
            return np.asarray(jnp.asarray(inv_freq(config)).astype(dtype).astype(jnp.float64))

        return everywhere((llama, "inv_freq", rounded))

    def angles_in(dtype: Any) -> Patches:
        def rounded(*arguments: Any) -> tuple[jax.Array, jax.Array]:
            cos, sin = rope_cos_sin(*arguments)
            return cos.astype(dtype).astype(cos.dtype), sin.astype(dtype).astype(sin.dtype)

        return everywhere((llama, "rope_cos_sin", rounded))

    def positions_in(dtype: Any) -> Patches:
        def rounded(frequencies: jax.Array, positions: jax.Array, wanted: Any) -> Any:
            return rope_cos_sin(frequencies, positions.astype(dtype).astype(jnp.int32), wanted)

        return everywhere((llama, "rope_cos_sin", rounded))

    bf16, f16 = jnp.bfloat16, jnp.float16
    for name, dtype, lane in (
        ("bf16", bf16, "f64"),
        ("f16", f16, "f64"),
        ("bf16", bf16, "f32"),
        ("f16", f16, "f32"),
        ("bf16", bf16, "bf16"),
    ):
        found.append(
            Fault(
                "R7",
                "inv_freq held in 16 bits",
                name,
                "layers.0.q_rope",
                "rope-precision",
                # In bfloat16 the table's rounding is none; its effect far along is.
                flagged=() if lane == "bf16" else TABLE,
                lane=lane,
                scenario="long_positions",
                patches=held_in(dtype),
            )
        )
    for name, dtype, lane in (("bf16", bf16, "f64"), ("bf16", bf16, "f32"), ("f16", f16, "f32")):
        found.append(
            Fault(
                "R7",
                "cos and sin held in 16 bits",
                name,
                "layers.0.q_rope",
                "rope-precision",
                lane=lane,
                patches=angles_in(dtype),
            )
        )
    for lane in ("f64", "bf16"):
        found.append(
            Fault(
                "R7",
                "positions held in 16 bits",
                "bf16",
                "layers.0.q_rope",
                "rope-precision",
                lane=lane,
                scenario="long_positions",
                patches=positions_in(bf16),
            )
        )
    return found


def moved_positions(wrong: Callable[[jax.Array, Moment], jax.Array]) -> Patches:
    """Return patches that give the model other rotary positions; masks keep the right ones."""

    def patches(moment: Moment) -> Any:
        embed = llama.Llama.embed

        def shifted(self: Any, tokens: Any, positions: jax.Array, mask: Any, **options: Any) -> Any:
            return embed(self, tokens, wrong(positions, moment), mask, **options)

        return [(llama.Llama, "embed", shifted)]

    return patches


def _positions() -> list[Fault]:
    def fault(family: str, kind: str, variant: str, wrong: Any, **more: Any) -> Fault:
        return Fault(
            **{
                "family": family,
                "kind": kind,
                "variant": variant,
                "expected": "layers.0.q_rope",
                "flagged": ("positions",),
                "patches": moved_positions(wrong),
                "cause": "position-offset",
                **more,
            }
        )

    def single(positions: jax.Array) -> bool:
        return positions.shape[1] == 1

    found = [
        fault(
            "R8",
            "decode position always 0",
            scenario,
            lambda p, m: jnp.zeros_like(p) if single(p) else p,
            scenario=scenario,
            mode="decode",
            step=2,
        )
        for scenario in ("causal", "mixed_lengths")
    ]
    found += [
        fault(
            "R8",
            "positions start anew with each call",
            "every call",
            lambda p, m: jnp.broadcast_to(jnp.arange(p.shape[1], dtype=p.dtype)[None], p.shape),
            mode="decode",
            step=1,
        ),
        fault(
            "R8",
            "decode position not advanced",
            "lags by the step",
            lambda p, m: p - max(m.chunk - 2, 0),
            mode="decode",
            step=3,
        ),
        fault(
            "R8",
            "decode position off by one",
            "lags by 1",
            lambda p, m: p - 1 if single(p) else p,
            mode="decode",
            step=2,
        ),
        fault("R12", "positions start at 1", "all", lambda p, m: p + 1),
        fault("R12", "positions start at 1", "long", lambda p, m: p + 1, scenario="long_positions"),
        fault(
            "R12",
            "left pads counted as positions",
            "left",
            lambda p, m: jnp.broadcast_to(jnp.arange(p.shape[1], dtype=p.dtype)[None], p.shape),
            scenario="left_padded",
        ),
        fault(
            "R12",
            "positions cut off at the table's end",
            "8192",
            lambda p, m: jnp.minimum(p, 8191),
            scenario="long_positions",
        ),
        fault("R12", "every second position", "halved", lambda p, m: p // 2),
    ]
    return found
