"""Attention maps whose figures are known beforehand; T queries, S = T keys."""

from __future__ import annotations

import numpy as np


def causal(length: int) -> np.ndarray:
    """Return which keys a causal model's queries see [T, S]."""
    return np.tril(np.ones((length, length), bool))


def uniform(length: int) -> np.ndarray:
    """Return a map of equal weights on all that is seen."""
    seen = causal(length).astype(np.float64)
    return seen / seen.sum(1, keepdims=True)


def previous(length: int) -> np.ndarray:
    """Return a map on the token before, the first token on itself."""
    rows = np.arange(length)
    return np.eye(length)[np.maximum(rows - 1, 0)]


def column(length: int, at: int) -> np.ndarray:
    """Return a map on one key, of queries before it on themselves."""
    rows = np.arange(length)
    return np.eye(length)[np.minimum(rows, at)]


def scattered(length: int, seed: int = 0) -> np.ndarray:
    """Return a map of one key a query, each another at another distance."""
    rng = np.random.default_rng(seed)
    return np.eye(length)[[int(rng.integers(0, i + 1)) for i in range(length)]]


def soft(heads: int, length: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    """Return the softmax of random scores [N, T, S]."""
    scores = np.random.default_rng(seed).standard_normal((heads, length, length)) * spread
    scores = np.where(causal(length), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
