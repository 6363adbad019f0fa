"""The promise on real weights: float64 agreement with PyTorch on a trained Llama, to 1e-9."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import parity
from jaxllama.checkpoint import convert, open_checkpoint

pytestmark = pytest.mark.optimised  # what users run first
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


def test_smollm2_is_equal_in_every_format_on_its_way_round(tmp_path: Path) -> None:
    """HF, Meta, Orbax, GGUF and HF again: the same digests, and PyTorch agrees each time."""
    source, digests = open_checkpoint("smollm2"), []
    original = source
    for stage, to in enumerate(("meta", "orbax", "gguf", "hf")):
        result = convert(source, tmp_path / f"{stage}", to=to)
        assert result.nbytes == 538_060_032 and not result.losses
        digests.append(dict(result.digests))
        source = open_checkpoint(result.target)
        assert source.format == to
        judged = parity.run(
            result.target, dtypes="f32", scenarios="right_padded", modes="free", length=12
        )
        assert judged.exit_code == 0 and judged.compared == judged.expected
        if stage:
            for file in (tmp_path / f"{stage - 1}").rglob("*"):
                if file.is_file():
                    os.unlink(file)  # half a gigabyte each
    assert digests[0] == digests[1] == digests[2] == digests[3]
    text = "Round and round, 12345 times."
    assert source.tokenizer().encode(text) == original.tokenizer().encode(text)
    assert source.config == original.config
