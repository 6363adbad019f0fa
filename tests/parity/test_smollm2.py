"""The promise on real weights: float64 agreement with PyTorch on a trained Llama, to 1e-9."""

from __future__ import annotations

from typing import Any

import parity

REFERENCES = ("torch", "hf", "meta")


def run(**options: Any) -> parity.Result:
    return parity.run(
        "smollm2", dtypes="f64", scenarios="causal", modes="free", length=24, **options
    )


def test_every_tap_of_smollm2_agrees_with_three_witnesses_to_1e9() -> None:
    result = run(reference=REFERENCES)
    assert result.verdict == "equal"
    assert max(row.error for row in result.rows) <= 1e-9
    assert result.compared == result.expected and result.unmatched == ()
    assert {w.witness for w in result.witnesses if w.agrees and not w.unmatched} == set(REFERENCES)


def test_a_wrong_rotary_base_is_found_where_it_starts() -> None:
    result = run(overrides=["rope_theta=1e6"])
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.q_rope"
    assert "rope.inv_freq" in result.first_divergence.flagged
