"""The training loss: whose successor counts, and how it is averaged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.loss import next_token_loss

V = 7
TOKENS = np.array([[3, 1, 4, 1, 5], [0, 2, 6, 5, 3]])
LOGITS = np.random.default_rng(5).normal(size=(2, 5, V)) * 3

# (valid, segments, the pairs of row, column and successor's column that count)
CASES = {
    "whole rows": (
        np.ones((2, 5), bool),
        None,
        [(b, t, t + 1) for b in range(2) for t in range(4)],
    ),
    "pads left, inside and right": (
        np.array([[0, 1, 0, 1, 0], [1, 1, 1, 0, 0]], bool),
        None,
        [(0, 1, 3), (1, 0, 1), (1, 1, 2)],
    ),
    "documents": (
        np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool),
        np.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]], np.int32),
        [(0, 0, 1), (0, 2, 3), (0, 3, 4), (1, 1, 2)],
    ),
}


def loss_of(valid: np.ndarray, segments: np.ndarray | None) -> float:
    given = None if segments is None else jnp.asarray(segments)
    tokens, logits = jnp.asarray(TOKENS), jnp.asarray(LOGITS)
    return float(next_token_loss(logits, tokens, valid=jnp.asarray(valid), segments=given))


@pytest.mark.parametrize("case", CASES)
def test_only_successors_within_a_document_count(case: str) -> None:
    valid, segments, pairs = CASES[case]
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    expected = -np.mean([log_probs[b, t, TOKENS[b, after]] for b, t, after in pairs])
    assert loss_of(valid, segments) == pytest.approx(expected, rel=1e-13)
    # Another mean than over exactly these pairs is another number.
    assert loss_of(np.ones((2, 5), bool), None) != expected or case == "whole rows"


def test_a_batch_without_successors_has_no_loss_and_no_gradient() -> None:
    alone = jnp.asarray(np.eye(2, 5, dtype=bool))
    value, gradient = jax.value_and_grad(next_token_loss)(
        jnp.asarray(LOGITS), jnp.asarray(TOKENS), valid=alone
    )
    assert float(value) == 0.0 and not np.asarray(gradient).any()


def test_what_does_not_count_has_no_gradient() -> None:
    valid, segments, pairs = CASES["documents"]
    assert segments is not None
    gradient = jax.grad(next_token_loss)(
        jnp.asarray(LOGITS),
        jnp.asarray(TOKENS),
        valid=jnp.asarray(valid),
        segments=jnp.asarray(segments),
    )
    moved = np.argwhere(np.asarray(gradient).any(-1))
    assert {tuple(at) for at in moved.tolist()} == {(b, t) for b, t, _ in pairs}


def test_the_dtype_is_that_of_the_logits() -> None:
    for dtype in (jnp.float32, jnp.float64):
        valid = jnp.ones((2, 5), bool)
        value = next_token_loss(jnp.asarray(LOGITS, dtype), jnp.asarray(TOKENS), valid=valid)
        assert value.dtype == dtype
