"""The distance of two taps: nothing is averaged away, and some things no tolerance excuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.attention_maps import total_variation
from parity.distance import difference
from parity.gold import Difference, Gold
from parity.logits import distance_of_logits

rng = np.random.default_rng(5)

B, T, N, D, V = 2, 7, 3, 11, 19
VALID = np.ones((B, T), bool)
MASK = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))


def activations(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def compared(name: str, subject: np.ndarray, gold: np.ndarray, **kwargs: np.ndarray) -> Difference:
    return difference(name, subject, gold, kwargs.get("valid", VALID), kwargs.get("mask", MASK))


def softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    hidden = np.where(mask, scores, -np.inf)
    weights = np.exp(hidden - hidden.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention() -> tuple[np.ndarray, np.ndarray]:
    scores = 3 * activations(B, N, T, T)
    return scores, softmax(scores, MASK[:, None])


class TestTokens:
    def test_equal_arrays_have_no_distance(self) -> None:
        x = activations(B, T, D)
        found = compared("embed", x.copy(), x)
        assert found.relative.shape == (B, T)
        assert not found.relative.any() and not found.peak.any()
        assert found.worst is None and not found.problems

    def test_one_wrong_token_among_1024_is_not_averaged_away(self) -> None:
        gold = activations(1, 1024, D)
        subject = gold.copy()
        subject[0, 700] = activations(D)
        found = difference(
            "embed", subject, gold, np.ones((1, 1024), bool), np.ones((1, 1024, 1024), bool)
        )
        assert found.relative.max() > 0.5
        assert found.relative.argmax() == 700
        assert (found.relative > 0).sum() == 1
        assert found.worst is not None and found.worst.index["T"] == 700
        # What a checker would say that averages over the whole tensor:
        whole = np.linalg.norm(subject - gold) / np.linalg.norm(gold)
        assert whole < 0.1 * found.relative.max()

    def test_one_wrong_element_shows_in_the_peak(self) -> None:
        gold = activations(1, 1, 4096)
        subject = gold.copy()
        subject[0, 0, 77] += 1e-3
        one = np.ones((1, 1), bool)
        found = difference("embed", subject, gold, one, one[..., None])
        assert found.peak.max() == pytest.approx(1e-3 / np.abs(gold).max())
        assert found.peak.max() > 10 * found.relative.max()
        assert found.worst is not None
        assert found.worst.index == {"B": 0, "T": 0, "D": 77}
        assert found.worst.subject - found.worst.gold == pytest.approx(1e-3)

    def test_pads_are_not_compared_whatever_they_hold(self) -> None:
        gold, valid = activations(B, T, D), VALID.copy()
        valid[1, 4:] = False
        subject = gold.copy()
        subject[1, 4:] = np.nan
        assert not compared("embed", subject, gold, valid=valid).relative.any()
        subject[1, 3] += 1e-6
        assert compared("embed", subject, gold, valid=valid).relative.argmax() == T + 3

    def test_a_vanishing_token_is_measured_against_its_neighbours(self) -> None:
        gold = activations(1, T, D)
        gold[0, 2] *= 1e-30
        subject = gold.copy()
        subject[0, 2] += 1e-12
        found = difference("embed", subject, gold, np.ones((1, T), bool), MASK[:1])
        assert found.relative.max() < 1e-10

    def test_heads_are_part_of_a_token(self) -> None:
        gold = activations(B, T, N, 4)
        subject = gold.copy()
        subject[1, 5, 2, 3] += 1.0
        found = compared("layers.0.q_proj", subject, gold)
        assert found.relative.shape == (B, T)
        assert found.worst is not None
        assert found.worst.index == {"B": 1, "T": 5, "N": 2, "H": 3}

    @given(st.sampled_from([1e-12, 1e-7, 1e-2, 1.0]), st.integers(0, B * T - 1))
    def test_the_distance_is_the_relative_norm(self, size: float, token: int) -> None:
        gold = activations(B, T, D)
        step = np.zeros_like(gold)
        step.reshape(-1, D)[token] = size * activations(D)
        found = compared("embed", gold + step, gold)
        row = gold.reshape(-1, D)[token]
        moved = (gold + step - gold).reshape(-1, D)[token]  # what addition left of the step
        assert found.relative.max() == pytest.approx(
            np.linalg.norm(moved) / np.linalg.norm(row), rel=1e-9
        )

    def test_bfloat16_is_read_exactly(self) -> None:
        gold = activations(B, T, D)
        narrow = gold.astype(ml_dtypes.bfloat16)
        found = compared("embed", narrow, narrow.astype(np.float64))
        assert not found.relative.any()
        assert 1e-4 < compared("embed", narrow, gold).relative.max() < 2**-8


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
        gold = activations(B, T, V)
        subject = gold.copy()
        subject[1, 3, 6] = bad
        found = compared(name, subject, gold)
        assert found.problems == ["1 elements are NaN or infinite in one and not in the other"]
        assert np.isinf(found.relative[1, 3]) and np.isfinite(found.relative[0]).all()
        assert found.worst is not None and found.worst.index["T"] == 3

    @pytest.mark.parametrize("name", ["embed", "logits"])
    def test_where_both_are_alike(self, name: str) -> None:
        gold = activations(B, T, V)
        gold[0, 1, 2], gold[0, 1, 3], gold[1, 5, 5] = np.nan, np.inf, -np.inf
        found = compared(name, gold.copy(), gold)
        assert not found.problems and not found.relative.any()
        other = gold.copy()
        other[1, 5, 6] += 1.0  # a finite difference beside them still counts
        assert compared(name, other, gold).relative[1, 5] > 0.01

    def test_the_sign_of_infinity_counts(self) -> None:
        gold = activations(B, T, D)
        gold[1, 5, 5] = np.inf
        subject = gold.copy()
        subject[1, 5, 5] = -np.inf
        assert compared("embed", subject, gold).problems

    def test_a_nan_that_moved_is_two_findings(self) -> None:
        gold = activations(B, T, D)
        subject = gold.copy()
        gold[0, 0, 0], subject[0, 0, 1] = np.nan, np.nan
        assert "2 elements" in compared("embed", subject, gold).problems[0]


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
        gold = 5e5 ** -(np.arange(8) / 8)
        subject = gold.copy()
        subject[7] *= 1 + 1e-9
        found = compared("rope.inv_freq", subject, gold)
        # The slowest is a millionth of the fastest: a norm over all would hide it.
        assert found.relative.shape == (8,) and found.relative[7] > 1e-12
        assert found.relative.argmax() == 7


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
        gold = softmax(scores, MASK[:, None])
        subject = gold.astype(np.float32)
        subject[subject < np.finfo(np.float32).tiny] = 0.0
        assert (subject == 0).sum() > (gold == 0).sum()
        assert not compared("layers.0.attn_probs", subject.astype(dtype), gold).problems
        # In float64 the same zero would be a fault.
        assert compared("layers.0.attn_probs", subject.astype(np.float64), gold).problems

    @pytest.mark.parametrize(("weight", "allowed"), [(1e-31, True), (1e-30, False)])
    def test_underflow_of_scores_that_were_rounded(self, weight: float, allowed: bool) -> None:
        """Scores in bfloat16 may honestly be off by a few, 87 below the row's largest."""
        _, gold = attention()
        gold[1, 1, 5, 2] = weight
        gold /= gold.sum(-1, keepdims=True)
        subject = gold.copy()
        subject[1, 1, 5, 2] = 0.0
        found = compared("layers.0.attn_probs", subject.astype(np.float32), gold)
        assert bool(found.problems) is not allowed
        assert compared("layers.0.attn_probs", subject, gold).problems

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
        gold_scores = Gold("layers.0.attn_scores", scores, valid, mask)
        gold_probs = Gold("layers.0.attn_probs", softmax(scores, mask), valid, mask)
        probs = softmax(other, mask) if probs is None else probs
        moved, bound, share = total_variation(other, gold_scores, probs, gold_probs)
        assert (share > 1) == (moved > bound) or share == pytest.approx(1)
        return moved, bound

    @given(
        st.lists(st.floats(-30, 30), min_size=2, max_size=9),
        st.lists(st.floats(-4, 4), min_size=9, max_size=9),
    )
    def test_no_softmax_passes_the_bound(self, scores: list[float], moves: list[float]) -> None:
        gold = np.array(scores)[None, None, None]
        moved, bound = self.measure(gold, gold + np.array(moves[: len(scores)]))
        assert moved <= bound

    @pytest.mark.parametrize("spread", [1e-6, 0.1, 1.0, 5.0])
    def test_the_bound_is_reached(self, spread: float) -> None:
        """Two keys with scores -R/2 and R/2 exchanged by moves of R: weights move by tanh(R/4)."""
        gold = np.array([-spread / 4, spread / 4])[None, None, None]
        moved, bound = self.measure(gold, -gold)
        assert moved == pytest.approx(np.tanh(spread / 4), rel=1e-6)
        assert moved <= bound < moved + 1e-13

    def test_equal_scores_excuse_nothing(self) -> None:
        scores = activations(1, 1, 1, 9)
        probs = softmax(scores, np.ones((1, 1, 9), bool))
        probs[..., [0, 1]] += [1e-6, -1e-6]
        moved, bound = self.measure(scores, scores, probs)
        assert moved > bound


class TestLogits:
    def test_a_shift_of_all_is_reported_apart(self) -> None:
        gold = activations(B, T, V)
        found = compared("logits", gold + 2.5, gold)
        assert found.relative.max() < 1e-14
        assert found.facts["shift"] == pytest.approx(2.5)
        assert found.facts["range"] < 1e-14 and found.facts["top1_flips"] == 0

    def test_the_divergence_is_summed_over_the_vocabulary(self) -> None:
        gold = activations(B, T, V)
        subject = gold.copy()
        subject[1, 2] = gold[1, 2, ::-1]
        p, q = (softmax(x[1, 2], np.ones(V, bool)) for x in (gold, subject))
        found = compared("logits", subject, gold)
        assert found.facts["kl_max"] == pytest.approx((p * np.log(p / q)).sum())
        spread = np.ptp(subject - gold, axis=-1).max()
        assert found.facts["range"] == pytest.approx(spread)
        assert found.facts["kl_max"] <= spread**2 / 8

    def test_the_divergence_of_rounding_does_not_cancel(self) -> None:
        gold = activations(B, T, V)
        step = 1e-9 * activations(B, T, V)
        p = softmax(gold, np.ones(V, bool))
        mean = (p * step).sum(-1, keepdims=True)
        expected = (p * (step - mean) ** 2).sum(-1).max() / 2  # to second order
        assert compared("logits", gold + step, gold).facts["kl_max"] == pytest.approx(
            expected, rel=1e-3
        )

    @pytest.mark.parametrize("size", [1e3, 1e5])
    def test_logits_beyond_the_range_of_exp_still_have_figures(self, size: float) -> None:
        gold = activations(B, T, V)
        found = compared("logits", -size * gold, gold)  # the likeliest token becomes the last
        log_p = gold - gold.max(-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        log_q = -size * gold + size * gold.min(-1, keepdims=True)
        log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        assert found.facts["kl_max"] == pytest.approx(divergence.max())
        distance = np.linalg.norm(log_q - log_p, axis=-1) / np.linalg.norm(log_p, axis=-1)
        assert found.relative == pytest.approx(distance)

    def test_flips_come_with_the_margin_they_overcame(self) -> None:
        gold = np.zeros((B, T, V))
        gold[..., 4], gold[..., 9] = 5.0, 4.9
        subject = gold.copy()
        subject[1, 6, 9] = 5.05
        facts = compared("logits", subject, gold).facts
        assert facts["top1_flips"] == 1
        assert facts["flip_margin"] == pytest.approx(0.1)
        assert compared("logits", gold, gold).facts["flip_margin"] == 0.0

    def test_one_wrong_token_of_many_blocks(self) -> None:
        gold = activations(1, 150, V)
        subject = gold.copy()
        subject[0, 149] = subject[0, 149, ::-1]
        found = difference(
            "logits", subject, gold, np.ones((1, 150), bool), np.ones((1, 150, 150), bool)
        )
        assert found.relative.argmax() == 149 and (found.relative > 0).sum() == 1
        assert found.worst is not None and found.worst.index["T"] == 149

    def test_a_chunk_of_pads_alone(self) -> None:
        gold = activations(B, T, V)
        found = compared("logits", gold + activations(B, T, V), gold, valid=~VALID)
        assert not found.relative.any() and found.facts["kl_p999"] == 0.0


def test_logits_are_apart_up_to_a_shift() -> None:
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((2, 3, 7))
    valid = np.array([[True, True, True], [True, True, False]])
    shift = rng.standard_normal((2, 3, 1))
    assert distance_of_logits(logits + shift, logits, valid) < 1e-15
    moved = logits.copy()
    moved[1, 1, 4] += 1e-3
    centred = np.linalg.norm(logits[1, 1] - logits[1, 1].mean())
    expected = 1e-3 * np.sqrt(6 / 7) / centred
    assert distance_of_logits(moved, logits, valid) == pytest.approx(expected)
    moved = logits.copy()
    moved[1, 2] = np.nan  # a pad
    assert distance_of_logits(moved, logits, valid) == 0
    moved[0, 0, 0] = np.inf
    assert distance_of_logits(moved, logits, valid) == np.inf


@given(st.integers(0, 2**32 - 1))
def test_maps_cut_after_the_last_visible_key_are_compared_in_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    B, N, T, S = 2, 3, 5, 7
    mask = rng.random((B, T, S)) < rng.random()
    valid = rng.random((B, T)) < 0.8
    gold = rng.standard_normal((B, N, T, S))
    scores = gold + 1e-3 * rng.standard_normal(gold.shape)
    scores[np.broadcast_to(~mask[:, None], scores.shape)] = np.nan  # hidden: nobody looks
    found = difference("layers.0.attn_scores", scores, gold, valid, mask)
    seen = np.where(mask[:, None], scores - gold, 0.0)
    live = np.broadcast_to((valid & mask.any(-1))[:, None], (B, N, T))
    top = np.where(live, np.linalg.norm(seen, axis=-1), 0.0)
    sizes = Gold("layers.0.attn_scores", gold, valid, mask).sizes[0]
    np.testing.assert_allclose(found.relative, top / sizes, rtol=1e-12, atol=0)
    assert not found.problems
