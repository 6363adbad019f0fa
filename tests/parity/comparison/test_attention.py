"""Attention maps: who carries weight is exact, and how far weights move has a bound."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from distances import MASK, B, N, T, activations, attention, compared, softmax
from hypothesis import given
from hypothesis import strategies as st

from parity.comparison.attention import total_variation
from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import difference


class TestAttentionMaps:
    def test_hidden_cells_of_scores_carry_no_meaning(self) -> None:
        scores, _ = attention()
        subject = np.where(MASK[:, None], scores, np.nan)
        assert not compared("layers.0.attn_scores", subject, scores).relative.any()
        subject[0, 1, 4, 2] += 1e-9
        found = compared("layers.0.attn_scores", subject, scores)
        assert found.relative.shape == (B, N, T) and found.relative[0, 1, 4] > 0

    def test_a_leak_is_a_problem_however_small(self) -> None:
        _, probs = attention()
        subject = probs.copy()
        subject[1, 2, 3, 5] = 1e-300
        found = compared("layers.0.attn_probs", subject, probs)
        assert "1 hidden keys carry weight" in found.problems[0]
        assert "row 1, head 2, query 3, key 5" in found.problems[0]

    def test_a_visible_key_without_weight_is_a_problem(self) -> None:
        _, probs = attention()
        subject = probs.copy()
        subject[0, 0, 6, 2] = 0.0
        found = compared("layers.0.attn_probs", subject, probs)
        assert any("visible keys carry none" in problem for problem in found.problems)

    @pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
    def test_underflow_is_no_missing_key(self, dtype: np.dtype) -> None:
        scores = activations(B, N, T, T)
        scores[..., 1] -= 105.0  # exp(-105) is below float32's smallest normal number
        reference = softmax(scores, MASK[:, None])
        subject = reference.astype(np.float32)
        subject[subject < np.finfo(np.float32).tiny] = 0.0
        assert (subject == 0).sum() > (reference == 0).sum()
        assert not compared("layers.0.attn_probs", subject.astype(dtype), reference).problems
        # In float64 the same zero would be a fault.
        assert compared("layers.0.attn_probs", subject.astype(np.float64), reference).problems

    @pytest.mark.parametrize(("weight", "allowed"), [(1e-31, True), (1e-30, False)])
    def test_underflow_of_scores_that_were_rounded(self, weight: float, allowed: bool) -> None:
        """Scores in bfloat16 may honestly be off by a few, 87 below the row's largest."""
        _, reference = attention()
        reference[1, 1, 5, 0] += reference[1, 1, 5, 2] - weight  # whatever it was, rows add up
        reference[1, 1, 5, 2] = weight
        subject = reference.copy()
        subject[1, 1, 5, 2] = 0.0
        found = compared("layers.0.attn_probs", subject.astype(np.float32), reference)
        assert bool(found.problems) is not allowed
        assert compared("layers.0.attn_probs", subject, reference).problems

    @pytest.mark.parametrize(("weight", "allowed"), [(1e-20, True), (1e-18, False)])
    def test_underflow_in_a_map_that_has_drifted(self, weight: float, allowed: bool) -> None:
        """Where rows have moved as a whole, the largest score of another may have, too."""
        _, reference = attention()
        reference[1, 1, 5, 0] += reference[1, 1, 5, 2] - weight
        reference[1, 1, 5, 2] = weight
        subject = reference.copy()
        subject[1, 1, 5, 2] = 0.0
        subject[0, 0, 6, [2, 3]] = subject[0, 0, 6, [3, 2]]
        found = compared("layers.0.attn_probs", subject.astype(np.float32), reference)
        assert any("carry none" in said for said in found.problems) is not allowed
        assert compared("layers.0.attn_probs", subject, reference).problems

    def test_an_empty_row_is_not_compared(self) -> None:
        _, probs = attention()
        mask = MASK.copy()
        mask[0, 3] = False
        subject = probs.copy()
        subject[0, :, 3] = 1 / T
        assert not compared("layers.0.attn_probs", subject, probs, mask=mask).problems

    def test_rows_that_do_not_sum_to_one(self) -> None:
        _, probs = attention()
        assert compared("layers.0.attn_probs", probs, probs).facts["row_sum_error"] < 1e-15
        found = compared("layers.0.attn_probs", probs * 0.99, probs)
        assert found.facts["row_sum_error"] == pytest.approx(0.01)


class TestTotalVariation:
    @staticmethod
    def measure(
        scores: np.ndarray, other: np.ndarray, probs: np.ndarray | None = None
    ) -> tuple[float, float]:
        mask, valid = np.ones((1, 1, scores.shape[-1]), bool), np.ones((1, 1), bool)
        gold_scores = ReferenceTap("layers.0.attn_scores", scores, valid, mask)
        gold_probs = ReferenceTap("layers.0.attn_probs", softmax(scores, mask), valid, mask)
        probs = softmax(other, mask) if probs is None else probs
        moved, bound, share = total_variation(other, gold_scores, probs, gold_probs)
        assert (share > 1) == (moved > bound) or share == pytest.approx(1)
        return moved, bound

    @given(
        st.lists(st.floats(-30, 30), min_size=2, max_size=9),
        st.lists(st.floats(-4, 4), min_size=9, max_size=9),
    )
    def test_no_softmax_passes_the_bound(self, scores: list[float], moves: list[float]) -> None:
        reference = np.array(scores)[None, None, None]
        moved, bound = self.measure(reference, reference + np.array(moves[: len(scores)]))
        assert moved <= bound

    @pytest.mark.parametrize("spread", [1e-6, 0.1, 1.0, 5.0])
    def test_the_bound_is_reached(self, spread: float) -> None:
        """Two keys with scores -R/2 and R/2 exchanged by moves of R: weights move by tanh(R/4)."""
        reference = np.array([-spread / 4, spread / 4])[None, None, None]
        moved, bound = self.measure(reference, -reference)
        assert moved == pytest.approx(np.tanh(spread / 4), rel=1e-6)
        assert moved <= bound < moved + 1e-13

    def test_equal_scores_excuse_nothing(self) -> None:
        scores = activations(1, 1, 1, 9)
        probs = softmax(scores, np.ones((1, 1, 9), bool))
        probs[..., [0, 1]] += [1e-6, -1e-6]
        moved, bound = self.measure(scores, scores, probs)
        assert moved > bound


@given(st.integers(0, 2**32 - 1))
def test_maps_cut_after_the_last_visible_key_are_compared_in_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    B, N, T, S = 2, 3, 5, 7
    mask = rng.random((B, T, S)) < rng.random()
    valid = rng.random((B, T)) < 0.8
    reference = rng.standard_normal((B, N, T, S))
    scores = reference + 1e-3 * rng.standard_normal(reference.shape)
    scores[np.broadcast_to(~mask[:, None], scores.shape)] = np.nan  # hidden: nobody looks
    found = difference("layers.0.attn_scores", scores, reference, valid, mask)
    seen = np.where(mask[:, None], scores - reference, 0.0)
    live = np.broadcast_to((valid & mask.any(-1))[:, None], (B, N, T))
    top = np.where(live, np.linalg.norm(seen, axis=-1), 0.0)
    sizes = ReferenceTap("layers.0.attn_scores", reference, valid, mask).sizes[0]
    np.testing.assert_allclose(found.relative, top / sizes, rtol=1e-12, atol=0)
    assert not found.problems
