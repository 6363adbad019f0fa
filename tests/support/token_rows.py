"""Rows of tokens for tests of masks."""

from __future__ import annotations

import numpy as np

from jaxllama.masks import Mask, Tokens, causal, index, padding


def contiguous(lengths: list[int], size: int) -> Tokens:
    """Return rows of so many real tokens, padded at their end."""
    return Tokens.contiguous(np.array(lengths), size)


def without_first() -> tuple[Mask, Tokens]:
    """A left-padded row: query 1, the first real one, is denied the only key it could see."""
    valid = np.array([[False, True, True, True, True]])
    tokens = Tokens(np.array([[0, 0, 1, 2, 3]], np.int32), valid)
    return causal() & padding() & ~index(1), tokens
