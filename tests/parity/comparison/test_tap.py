"""The distance of two taps: nothing is averaged away, and some things no tolerance excuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from distances import MASK, VALID, B, D, N, T, V, activations, attention, compared
from hypothesis import given
from hypothesis import strategies as st

from parity.comparison.tap import difference


class TestTokens:
    def test_equal_arrays_have_no_distance(self) -> None:
        x = activations(B, T, D)
        found = compared("embed", x.copy(), x)
        assert found.relative.shape == (B, T)
        assert not found.relative.any() and not found.peak.any()
        assert found.worst is None and not found.problems

    def test_one_wrong_token_among_1024_is_not_averaged_away(self) -> None:
        reference = activations(1, 1024, D)
        subject = reference.copy()
        subject[0, 700] = activations(D)
        found = difference(
            "embed", subject, reference, np.ones((1, 1024), bool), np.ones((1, 1024, 1024), bool)
        )
        assert found.relative.max() > 0.5
        assert found.relative.argmax() == 700
        assert (found.relative > 0).sum() == 1
        assert found.worst is not None and found.worst.index["T"] == 700
        # What a checker would say that averages over the whole tensor:
        whole = np.linalg.norm(subject - reference) / np.linalg.norm(reference)
        assert whole < 0.1 * found.relative.max()

    def test_one_wrong_element_shows_in_the_peak(self) -> None:
        reference = activations(1, 1, 4096)
        subject = reference.copy()
        subject[0, 0, 77] += 1e-3
        one = np.ones((1, 1), bool)
        found = difference("embed", subject, reference, one, one[..., None])
        assert found.peak.max() == pytest.approx(1e-3 / np.abs(reference).max())
        assert found.peak.max() > 10 * found.relative.max()
        assert found.worst is not None
        assert found.worst.index == {"B": 0, "T": 0, "D": 77}
        assert found.worst.subject - found.worst.gold == pytest.approx(1e-3)

    def test_pads_are_not_compared_whatever_they_hold(self) -> None:
        reference, valid = activations(B, T, D), VALID.copy()
        valid[1, 4:] = False
        subject = reference.copy()
        subject[1, 4:] = np.nan
        assert not compared("embed", subject, reference, valid=valid).relative.any()
        subject[1, 3] += 1e-6
        assert compared("embed", subject, reference, valid=valid).relative.argmax() == T + 3

    def test_a_vanishing_token_is_measured_against_its_neighbours(self) -> None:
        reference = activations(1, T, D)
        reference[0, 2] *= 1e-30
        subject = reference.copy()
        subject[0, 2] += 1e-12
        found = difference("embed", subject, reference, np.ones((1, T), bool), MASK[:1])
        assert found.relative.max() < 1e-10

    def test_heads_are_part_of_a_token(self) -> None:
        reference = activations(B, T, N, 4)
        subject = reference.copy()
        subject[1, 5, 2, 3] += 1.0
        found = compared("layers.0.q_proj", subject, reference)
        assert found.relative.shape == (B, T)
        assert found.worst is not None
        assert found.worst.index == {"B": 1, "T": 5, "N": 2, "H": 3}

    @given(st.sampled_from([1e-12, 1e-7, 1e-2, 1.0]), st.integers(0, B * T - 1))
    def test_the_distance_is_the_relative_norm(self, size: float, token: int) -> None:
        reference = activations(B, T, D)
        step = np.zeros_like(reference)
        step.reshape(-1, D)[token] = size * activations(D)
        found = compared("embed", reference + step, reference)
        row = reference.reshape(-1, D)[token]
        moved = (reference + step - reference).reshape(-1, D)[
            token
        ]  # what addition left of the step
        assert found.relative.max() == pytest.approx(
            np.linalg.norm(moved) / np.linalg.norm(row), rel=1e-9
        )

    def test_bfloat16_is_read_exactly(self) -> None:
        reference = activations(B, T, D)
        narrow = reference.astype(ml_dtypes.bfloat16)
        found = compared("embed", narrow, narrow.astype(np.float64))
        assert not found.relative.any()
        assert 1e-4 < compared("embed", narrow, reference).relative.max() < 2**-8


class TestShape:
    @pytest.mark.parametrize("shape", [(B, D, T), (T, B, D), (B, T, D, 1), (B, T, D - 1), (B, T)])
    def test_a_mismatch_is_a_finding_never_a_transpose(self, shape: tuple[int, ...]) -> None:
        found = compared("embed", np.zeros(shape), activations(B, T, D))
        assert len(found.problems) == 1
        assert str(shape) in found.problems[0] and str((B, T, D)) in found.problems[0]

    def test_a_mismatch_in_attention_maps(self) -> None:
        _, probs = attention()
        assert compared("layers.0.attn_probs", probs[:, :1], probs).problems


class TestFiniteness:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", ["embed", "logits"])
    def test_where_the_reference_is_finite(self, name: str, bad: float) -> None:
        reference = activations(B, T, V)
        subject = reference.copy()
        subject[1, 3, 6] = bad
        found = compared(name, subject, reference)
        assert found.problems == ["1 elements are NaN or infinite in one and not in the other"]
        assert np.isinf(found.relative[1, 3]) and np.isfinite(found.relative[0]).all()
        assert found.worst is not None and found.worst.index["T"] == 3

    @pytest.mark.parametrize("name", ["embed", "logits"])
    def test_where_both_are_alike(self, name: str) -> None:
        reference = activations(B, T, V)
        reference[0, 1, 2], reference[0, 1, 3], reference[1, 5, 5] = np.nan, np.inf, -np.inf
        found = compared(name, reference.copy(), reference)
        assert not found.problems and not found.relative.any()
        other = reference.copy()
        other[1, 5, 6] += 1.0  # a finite difference beside them still counts
        assert compared(name, other, reference).relative[1, 5] > 0.01

    def test_the_sign_of_infinity_counts(self) -> None:
        reference = activations(B, T, D)
        reference[1, 5, 5] = np.inf
        subject = reference.copy()
        subject[1, 5, 5] = -np.inf
        assert compared("embed", subject, reference).problems

    def test_a_nan_that_moved_is_two_findings(self) -> None:
        reference = activations(B, T, D)
        subject = reference.copy()
        reference[0, 0, 0], subject[0, 0, 1] = np.nan, np.nan
        assert "2 elements" in compared("embed", subject, reference).problems[0]


class TestExact:
    def test_masks_and_positions_admit_no_tolerance(self) -> None:
        subject = MASK.copy()
        subject[1, 3, 4] = True
        found = compared("mask", subject, MASK)
        assert found.problems == [f"1 of {MASK.size} entries differ"]
        assert found.worst is not None and found.worst.index == {"B": 1, "T": 3, "S": 4}
        positions = np.tile(np.arange(T), (B, 1))
        assert not compared("positions", positions.astype(np.int32), positions).problems
        assert compared("positions", positions + 1, positions).problems

    def test_rows_of_pads_may_differ(self) -> None:
        valid = VALID.copy()
        valid[0, 2] = False
        subject = MASK.copy()
        subject[0, 2] = True
        assert not compared("mask", subject, MASK, valid=valid).problems

    def test_frequencies_are_compared_one_by_one(self) -> None:
        reference = 5e5 ** -(np.arange(8) / 8)
        subject = reference.copy()
        subject[7] *= 1 + 1e-9
        found = compared("rope.inv_freq", subject, reference)
        # The slowest is a millionth of the fastest: a norm over all would hide it.
        assert found.relative.shape == (8,) and found.relative[7] > 1e-12
        assert found.relative.argmax() == 7
