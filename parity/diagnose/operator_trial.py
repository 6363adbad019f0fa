"""A hypothesis tried on the one operator, with the subject's own inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import compare_tap
from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import HELD_TAPS, Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.mutations import CacheWrites, MutationSite
from parity.diagnose.operators import LINEAR_INPUTS, NORM_INPUTS, weight_name
from parity.subjects.torch.arrays import to_torch
from parity.subjects.torch_reference.operands import call_operands


def remaining_error(evidence: Evidence, hypothesis: Hypothesis) -> float:
    """Return the tap's error against the operator made wrong, on the subject's own inputs.

    0 means untried: masks, positions, weights and what is wrong backwards show in the whole
    reference alone.
    """
    tap = evidence.short
    if evidence.backward or hypothesis.left is not None:
        return hypothesis.left or 0.0
    changes = [c for c in hypothesis.changes if c.tap == tap and c.value is not None]
    weights = [c for c in hypothesis.changes if c.weight is not None]
    if not changes and not weights:
        return 0.0
    reference = evidence.reference
    value = recompute_tap(evidence, reference.with_changes(weights), _wide(evidence.truth[tap]))
    seen = {name: _wide(array) for name, array in evidence.subject.items() if array.dtype != bool}
    if tap in HELD_TAPS:  # what it holds is what is in question
        seen |= {name: _wide(evidence.truth[name]) for name in HELD_TAPS if name in evidence.truth}
    freq = evidence.setup.get("rope.inv_freq", evidence.true_setup["rope.inv_freq"])
    cos, sin = reference.angles(
        to_torch(np.asarray(freq, np.float64)), to_torch(np.array(evidence.positions))
    )
    mask = to_torch(np.array(evidence.mask))
    held = CacheWrites(
        evidence.sizes,
        to_torch(np.array(evidence.inputs.valid)),
        {i: (_wide(k), _wide(v)) for i, (k, v) in evidence.written.items()},
    )
    given = call_operands(evidence.inputs, evidence.columns.start, evidence.columns.stop)
    with torch.no_grad():
        for change in changes:
            assert change.value is not None
            value = change.value(
                MutationSite(
                    reference, evidence.layer, tap, value, seen, cos, sin, mask, held, given
                )
            )
    wrong = value.numpy()
    cells = evidence.mask | ((wrong > 0).any(1) if tap == "attn_probs" else False)
    rows = evidence.held if tap in HELD_TAPS else evidence.valid
    difference = compare_tap(ReferenceTap(evidence.tap, wrong, rows, cells), evidence.subject[tap])
    return float(difference.relative.max()) if np.isfinite(difference.relative).all() else 1e300


def _wide(array: np.ndarray) -> Tensor:
    return to_torch(np.asarray(array, np.float64))


def recompute_tap(evidence: Evidence, reference: MutatedReference, otherwise: Tensor) -> Tensor:
    """Return the tap as the reference computes it of the subject's inputs; weights count."""
    tap, prefix = evidence.short, f"model.layers.{evidence.layer}"

    def given(name: str) -> Tensor:
        return _wide(evidence.subject[name])

    with torch.no_grad():
        if tap == "embed":
            ids = evidence.inputs.tokens[:, evidence.columns].astype(np.int64)
            return reference.embed(to_torch(ids))
        if tap in NORM_INPUTS:
            name = "model.norm" if tap == "norm" else f"{prefix}.{tap}"
            return reference.rms_norm(given(NORM_INPUTS[tap]), name)
        if tap in LINEAR_INPUTS:
            x = given(LINEAR_INPUTS[tap])
            name = weight_name(tap, evidence.layer, reference.config).removesuffix(".weight")
            return reference.linear(x.reshape(*x.shape[:2], -1), name).reshape(otherwise.shape)
    return otherwise
