"""Small masks that rules make their mutants and twins from. Two rows, three heads, five tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.lint.case import Case

B, N, T = 2, 3, 5
LEFT_PADDED = np.array([[False, False, True, True, True], [True, True, True, True, True]])
IDS = np.array([[0, 0, 11, 12, 13], [14, 15, 16, 17, 18]])
PACKED = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
PACKED_POSITIONS = np.array([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])


def tril(t: int = T, s: int | None = None, *, below: int = 0) -> np.ndarray:
    """Return a bool [t, s] triangle aligned at the bottom right; `below` shifts it down."""
    s = t if s is None else s
    return np.tri(t, s, s - t - below, dtype=bool)


def additive(
    seen: np.ndarray, fill: float, *, dtype: Any = np.float32, shown: float = 0.0
) -> np.ndarray:
    """Return a mask to be added to the scores."""
    return np.where(seen, shown, fill).astype(dtype)


def left_padded(**changes: Any) -> Case:
    """Return a correct bool mask [B, 1, T, S] of a left-padded batch, with some facts changed."""
    seen = (tril()[None] & LEFT_PADDED[:, None, :])[:, None]
    facts: dict[str, Any] = {"mask": seen, "valid": LEFT_PADDED, "empty_row": "zero"}
    return Case(**{**facts, **changes})


def packed(**changes: Any) -> Case:
    """Return a correct bool mask [B, 1, T, S] of packed documents, with some facts changed."""
    same = PACKED[:, :, None] == PACKED[:, None, :]
    seen = (tril()[None] & same)[:, None]
    facts: dict[str, Any] = {"mask": seen, "segments": PACKED, "positions": PACKED_POSITIONS}
    return Case(**{**facts, **changes})


def cached(**changes: Any) -> Case:
    """Return a correct bool mask [1, 1, 2, 7] of two new tokens after three in a cache of seven."""
    seen = np.zeros((1, 1, 2, 7), bool)
    seen[0, 0, 0, :4] = True
    seen[0, 0, 1, :5] = True
    facts: dict[str, Any] = {"mask": seen, "past": 3, "capacity": 7}
    return Case(**{**facts, **changes})
