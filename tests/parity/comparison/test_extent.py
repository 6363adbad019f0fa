"""Which tokens and heads of a failing tap are beyond its limit."""

from __future__ import annotations

import numpy as np
import pytest

from parity.comparison.extent import extent
from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import compare_tap

B, T, N, H, S = 2, 5, 4, 6, 5
VALID = np.array([[True] * 5, [False, True, True, True, True]])
MASK = np.tril(np.ones((T, S), bool)) & VALID[:, :, None] & VALID[:, None, :]


def reference_of(name: str, shape: tuple[int, ...]) -> ReferenceTap:
    return ReferenceTap(name, np.random.default_rng(0).standard_normal(shape), VALID, MASK)


def spread(reference: ReferenceTap, subject: np.ndarray, at_hand: bool = True):
    found = compare_tap(reference, subject)
    floor = np.full(found.live.shape, 1e-15)
    rho = np.where(found.live, found.relative / floor, 0.0)
    return extent(found, rho, 256.0, reference, subject if at_hand else None, floor)


def test_what_agrees_has_no_extent() -> None:
    reference = reference_of("layers.0.q_proj", (B, T, N, H))
    assert spread(reference, reference.array * (1 + 1e-14)) is None


def test_one_head_of_some_tokens() -> None:
    reference = reference_of("layers.0.q_proj", (B, T, N, H))
    wrong = reference.array.copy()
    wrong[1, 2:, 3] += 1.0
    found = spread(reference, wrong)
    assert found is not None
    assert (found.tokens, found.of_tokens, found.first) == (3, 9, {"B": 1, "T": 2})
    assert (found.heads, found.of_heads) == ((3,), N)
    gone = spread(reference, wrong, at_hand=False)
    assert gone is not None and (gone.tokens, gone.heads, gone.of_heads) == (3, (), 0)


def test_heads_of_attention_maps() -> None:
    reference = reference_of("layers.0.attn_scores", (B, N, T, S))
    wrong = reference.array.copy()
    wrong[0, [0, 2], 3, 1] += 1.0
    wrong[0, 1, 3, 4] += 1.0  # hidden by the mask: not compared
    found = spread(reference, wrong)
    assert found is not None
    assert (found.tokens, found.first, found.heads) == (1, {"B": 0, "T": 3}, (0, 2))


def test_a_pad_is_in_no_extent() -> None:
    reference = reference_of("layers.0.q_proj", (B, T, N, H))
    wrong = reference.array.copy()
    wrong[1, 0] += 1.0
    assert spread(reference, wrong) is None


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_is_beyond_every_limit(broken: float) -> None:
    reference = reference_of("layers.0.mlp_act", (B, T, 7))
    wrong = reference.array.copy()
    wrong[0, 1, 4] = broken
    found = spread(reference, wrong)
    assert found is not None and (found.tokens, found.first) == (1, {"B": 0, "T": 1})
    heads = reference_of("layers.0.q_proj", (B, T, N, H))
    wrong = heads.array.copy()
    wrong[0, 1, 2] = broken
    found = spread(heads, wrong)
    assert found is not None and found.heads == (2,)
