"""The best-known faults once more, in a trained model of 30 layers: depth and real weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.selftest.fault import Fault, Weights, backwards, with_fields
from parity.selftest.faults.gradients import damping
from parity.selftest.faults.rotation import KEYS, QUERIES, neighbours, rotating
from parity.selftest.faulty_attention import attention_patches_in


def faults() -> list[Fault]:
    """Return the injections of this family."""

    def fault(family: str, kind: str, variant: str, tap: str, cause: str) -> Fault:
        return Fault(family, kind, variant, tap, cause, model="smollm2")

    def tiled(heads: np.ndarray, groups: int) -> np.ndarray:
        return heads % (len(heads) // groups)

    def swapped(weights: Weights) -> None:
        gate, up = (f"model.layers.29.mlp.{name}_proj.weight" for name in ("gate", "up"))
        weights[gate], weights[up] = weights[up], weights[gate]

    theta = fault("R3", "theta falls back to a default", "1e4", "layers.0.q_rope", "rope-theta")
    eps = fault("N1", "eps is a default", "1e-6", "layers.0.input_layernorm", "norm-eps")
    kind, tap = "neighbouring features rotated", "layers.17.q_rope"
    pairing = fault("R1", kind, "layer 17", tap, "rope-pairing")
    kind, tap = "kv heads tiled, not repeated", "layers.12.attn_scores"
    heads = fault("G1", kind, "layer 12", tap, "kv-head-map")
    gate = fault("W2", "gate and up swapped", "layer 29", "layers.29.gate_proj", "weight-swapped")
    found = [
        # Its own is 1e5.
        replace(theta, flagged=("rope.inv_freq",), config=with_fields(rope_theta=1e4)),
        replace(eps, config=with_fields(rms_norm_eps=1e-6)),
        replace(pairing, patches=rotating(neighbours, QUERIES, KEYS, layer=17)),
        replace(heads, patches=attention_patches_in(12, key_heads=tiled, value_heads=tiled)),
        replace(gate, weights=swapped),
    ]
    # Of eps the narrower dtypes show nothing that their rounding could not be.
    narrow = [
        replace(f, lane=lane) for lane in ("f32", "bf16") for f in found if f.kind != eps.kind
    ]
    scaled = backwards(
        "gradient scaled", "0.9 into layer 20", "grad.layers.20.input", "gradient-scaled"
    )
    damped = replace(scaled, family="D3", model="smollm2", patches=damping(0.9, 20))
    return [*found, *narrow, damped]
