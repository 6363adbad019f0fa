"""Made-up taps, and their distance as the comparison measures it."""

from __future__ import annotations

import numpy as np

from parity.comparison.difference import TapDifference
from parity.comparison.tap import difference

rng = np.random.default_rng(5)

B, T, N, D, V = 2, 7, 3, 11, 19
VALID = np.ones((B, T), bool)
MASK = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))


def activations(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def compared(
    name: str, subject: np.ndarray, reference: np.ndarray, **kwargs: np.ndarray
) -> TapDifference:
    return difference(
        name, subject, reference, kwargs.get("valid", VALID), kwargs.get("mask", MASK)
    )


def softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    hidden = np.where(mask, scores, -np.inf)
    weights = np.exp(hidden - hidden.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention() -> tuple[np.ndarray, np.ndarray]:
    scores = 3 * activations(B, N, T, T)
    return scores, softmax(scores, MASK[:, None])
