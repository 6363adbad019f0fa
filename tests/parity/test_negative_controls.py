"""Faults that real ports had, put into the JAX side: each must be detected, at its first wrong tap.

The whole catalogue runs with `parity selftest`; here are its best-known participants, and faults
that are in no catalogue at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxllama import model as llama
from parity.selftest.fault import Fault, in_layer
from parity.selftest.faults import catalogue
from parity.selftest.faulty_attention import attention_patches, softmax
from parity.selftest.harness import Harness, harnesses
from parity.selftest.run import SelftestPlan

CATALOGUE = {fault.id: fault for fault in catalogue()}
CONTROLS = {
    "R1": "R1 neighbouring features rotated [all layers; base causal f64]",
    "R2": "R2 one of q and k left in Meta order [k, from layer 1; base causal f64]",
    "R3": "R3 theta falls back to a default [1e+06; base causal f64]",
    "R4": "R4 rope scaling ignored [llama3; base long_positions f64]",
    "R10": "R10 rotation backwards [k; base causal f64]",
    "N1": "N1 eps is a default [1e-06; base causal f64]",
    "N4": "N4 scale by the model dim [D = 90; base causal f64]",
    "N5": "N5 final norm missing [identity; base causal f64]",
    "G1": "G1 kv heads tiled, not repeated [layer 1; base causal f64]",
    "G2": "G2 n_kv_heads taken as 1 [all layers; base causal f64]",
    "M1": "M1 no causal mask [causal; base causal f64]",
    "M2": "M2 polarity inverted [left_padded; base left_padded f64]",
    "M5": "M5 padding ignored [left_padded; base left_padded f64]",
    "M7": "M7 fill too weak for the scores [-50, layer 0; base causal f64]",
    "M10": "M10 packed documents see each other [mask alone; base packed f64]",
    "W2": "W2 gate and up swapped [layer 1; base causal f64]",
    "W3": "W3 a tensor of the neighbouring layer [self_attn.v_proj of layer 1; base causal f64]",
    "W4": "W4 square weight transposed [self_attn.o_proj of layer 1; square causal f64]",
}


@pytest.mark.parametrize("family", CONTROLS)
def test_a_fault_is_detected_at_its_first_wrong_tap(family: str) -> None:
    fault = CATALOGUE[CONTROLS[family]]
    found = harnesses().of(fault).check_fault(fault)
    assert found.verdict == "divergent"
    assert found.first is not None
    assert (found.first.row.tap, found.first.flagged) == (fault.expected, fault.flagged)
    assert found.first.row.lane == "f64"


# One of each published family of mask and cache faults, to the call in which it shows first.
MASKS_AND_CACHES = {
    fault.family: fault
    for fault in SelftestPlan(quick=True).faults()
    if fault.family in {*(f"M{i}" for i in range(1, 12)), *(f"C{i}" for i in range(1, 7))}
}


def test_every_published_family_of_mask_and_cache_faults_is_there() -> None:
    assert len(MASKS_AND_CACHES) == 11 + 6


@pytest.mark.parametrize("family", MASKS_AND_CACHES)
def test_a_mask_or_cache_fault_is_placed_to_the_tap_and_step(family: str) -> None:
    fault = MASKS_AND_CACHES[family]
    # Faulty code mixes integer widths, as real ports do: it runs under JAX's usual promotion.
    with jax.numpy_dtype_promotion("standard"):
        found = harnesses().of(fault).check_fault(fault)
    assert found.verdict == "divergent" and found.first is not None
    assert (found.first.row.tap, found.first.row.step) == (fault.expected, fault.step)


@pytest.mark.parametrize("model", ["base", "square"])
@pytest.mark.parametrize("scenario", ["causal", "long_positions", "left_padded", "packed"])
def test_the_clean_twin_is_equal(model: str, scenario: str) -> None:
    """The same code path, operation by operation, without a fault."""
    assert harnesses().harness(model, "f64").check_clean(scenario, "free").verdict == "equal"


def _base_2(scores: jax.Array, visible: jax.Array) -> jax.Array:
    log2 = jnp.log(jnp.asarray(2.0, scores.dtype))
    return softmax(scores * (1 + (log2 - 1) * 1e-9), visible)


def _forgetful(self: Any, x: jax.Array) -> jax.Array:
    """Leave every seventh feature of the input out."""
    kept = jnp.arange(x.shape[-1]) % 7 != 6
    x = jnp.where(kept, x, jnp.zeros_like(x)) if x.shape[-1] == 136 else x
    return jnp.einsum("...i,oi->...o", x, self.weight[...].astype(x.dtype))


def _token_wise(self: Any, x: jax.Array) -> jax.Array:
    """Normalise over the tokens in place of the features."""
    mean = jnp.mean(x * x, axis=1, keepdims=True)
    return x / jnp.sqrt(mean + self.eps) * self.weight[...].astype(x.dtype)[None, None, :]


# In no catalogue: detection and location must not depend on one. What edits of the operator's
# program explain is said in a sentence; the rest stays nameless.
UNHEARD_OF: dict[str, tuple[str, Callable[[Any], list[Any]], str]] = {
    "softmax off by one part in 1e9": (
        "layers.1.attn_probs",
        lambda _: attention_patches(weigh=_base_2),
        "",
    ),
    "features dropped before down_proj": (
        "layers.1.down_proj",
        lambda _: [(llama.Linear, "__call__", _forgetful)],
        "",
    ),
    "norm over tokens": (
        "layers.1.input_layernorm",
        lambda _: [(llama.RMSNorm, "__call__", _token_wise)],
        "mean is mean over axis -2 in place of mean over axis -1 in layer 1",
    ),
}


@pytest.mark.parametrize("kind", UNHEARD_OF)
def test_a_fault_nobody_catalogued_is_detected_and_located(kind: str) -> None:
    tap, make, said = UNHEARD_OF[kind]
    fault = Fault("X", kind, "layer 1", tap, patches=in_layer(1, make))
    found = harnesses().of(fault).check_fault(fault)
    assert found.verdict == "divergent"
    assert found.first is not None and found.first.row.tap == tap
    assert found.first.kind == "operator"
    cause = harnesses().of(fault).cause(fault, found.first)
    assert cause is not None and cause.confirmed == bool(said)
    assert said in cause.summary and cause.id == ("operator-edited" if said else "")


def test_patches_end_with_the_pass() -> None:
    """What a fault replaced is in place again: the next subject is not infected."""
    fault = CATALOGUE[CONTROLS["G1"]]
    harness: Harness = harnesses().of(fault)
    attend = llama.attend
    assert harness.check_fault(fault).verdict == "divergent"
    assert llama.attend is attend
    assert harness.check_clean("causal", "free").verdict == "equal"
