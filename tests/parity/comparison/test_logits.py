"""Logits: up to a shift, summed over the vocabulary, with the margins that flips overcame."""

from __future__ import annotations

import numpy as np
import pytest
from distances import VALID, B, T, V, activations, compared, softmax

from parity.comparison.logits import distance_of_logits
from parity.comparison.tap import difference


class TestLogits:
    def test_a_shift_of_all_is_reported_apart(self) -> None:
        reference = activations(B, T, V)
        found = compared("logits", reference + 2.5, reference)
        assert found.relative.max() < 1e-14
        assert found.facts["shift"] == pytest.approx(2.5)
        assert found.facts["range"] < 1e-14 and found.facts["top1_flips"] == 0

    def test_the_divergence_is_summed_over_the_vocabulary(self) -> None:
        reference = activations(B, T, V)
        subject = reference.copy()
        subject[1, 2] = reference[1, 2, ::-1]
        p, q = (softmax(x[1, 2], np.ones(V, bool)) for x in (reference, subject))
        found = compared("logits", subject, reference)
        assert found.facts["kl_max"] == pytest.approx((p * np.log(p / q)).sum())
        spread = np.ptp(subject - reference, axis=-1).max()
        assert found.facts["range"] == pytest.approx(spread)
        assert found.facts["kl_max"] <= spread**2 / 8

    def test_the_divergence_of_rounding_does_not_cancel(self) -> None:
        reference = activations(B, T, V)
        step = 1e-9 * activations(B, T, V)
        p = softmax(reference, np.ones(V, bool))
        mean = (p * step).sum(-1, keepdims=True)
        expected = (p * (step - mean) ** 2).sum(-1).max() / 2  # to second order
        assert compared("logits", reference + step, reference).facts["kl_max"] == pytest.approx(
            expected, rel=1e-3
        )

    @pytest.mark.parametrize("size", [1e3, 1e5])
    def test_logits_beyond_the_range_of_exp_still_have_figures(self, size: float) -> None:
        reference = activations(B, T, V)
        found = compared(
            "logits", -size * reference, reference
        )  # the likeliest token becomes the last
        log_p = reference - reference.max(-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        log_q = -size * reference + size * reference.min(-1, keepdims=True)
        log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        assert found.facts["kl_max"] == pytest.approx(divergence.max())
        distance = np.linalg.norm(log_q - log_p, axis=-1) / np.linalg.norm(log_p, axis=-1)
        assert found.relative == pytest.approx(distance)

    def test_flips_come_with_the_margin_they_overcame(self) -> None:
        reference = np.zeros((B, T, V))
        reference[..., 4], reference[..., 9] = 5.0, 4.9
        subject = reference.copy()
        subject[1, 6, 9] = 5.05
        facts = compared("logits", subject, reference).facts
        assert facts["top1_flips"] == 1
        assert facts["flip_margin"] == pytest.approx(0.1)
        assert compared("logits", reference, reference).facts["flip_margin"] == 0.0

    def test_one_wrong_token_of_many_blocks(self) -> None:
        reference = activations(1, 150, V)
        subject = reference.copy()
        subject[0, 149] = subject[0, 149, ::-1]
        found = difference(
            "logits", subject, reference, np.ones((1, 150), bool), np.ones((1, 150, 150), bool)
        )
        assert found.relative.argmax() == 149 and (found.relative > 0).sum() == 1
        assert found.worst is not None and found.worst.index["T"] == 149

    def test_a_chunk_of_pads_alone(self) -> None:
        reference = activations(B, T, V)
        found = compared("logits", reference + activations(B, T, V), reference, valid=~VALID)
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
