"""One call of an attention, whatever it was made by, and what masked scores say of a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.lint.case import Case
from parity.lint.reading import read

# Scores are not that low; a fill, or a fill and a score, is.
SURELY_HIDDEN = -1e3


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of an attention.

    Attributes:
        function: what was called.
        mask: [B or 1, N or 1, T, S], bool with True = seen, or numbers added to the scores.
        heads: N.
        scores_dtype: short name of the scores' dtype.
        is_causal: the function was told to be causal, as its `mask` already says.
    """

    function: str
    mask: np.ndarray
    heads: int
    scores_dtype: str
    is_causal: bool = False

    def case(self, **facts: Any) -> Case:
        """Return the call's mask for the rules, with what else is known about the tokens."""
        said: dict[str, Any] = {"heads": self.heads, "scores_dtype": self.scores_dtype}
        said["mask"] = self.mask
        t, s = self.mask.shape[-2:]
        seen = read(self.mask, None).seen
        known = {"valid", "lengths", "pad_id"} & facts.keys()
        if t < s and not seen[..., -1].any():
            said["capacity"] = s  # slots of a cache, of which nobody says how many are written
        elif t == s and not known and not (valid := seen.any((1, 2))).all():
            said["valid"] = valid
            said["notes"] = ("keys that no query sees are taken for padding; say which are real",)
        if self.is_causal:
            said |= {"is_causal": True, "align": "top_left"}
        return Case(**{**said, **facts})


def of_scores(function: str, scores: np.ndarray, dtype: str) -> AttentionCall | None:
    """Return what masked scores say of their mask; None where they are no attention's.

    Args:
        function: the softmax's name.
        scores: what goes into it, in at least float32.
        dtype: short name of the dtype that it was in.
    """
    if scores.ndim < 3:
        return None
    t, s = scores.shape[-2:]
    hidden = scores <= SURELY_HIDDEN
    if scores.ndim == 3 and not hidden.any() and t != s:  # of a vocabulary, or of experts
        return None
    rows = scores.shape[0] if scores.ndim > 3 else 1
    bias = np.where(hidden, scores, np.float32(0)).reshape(rows, -1, t, s)
    heads = bias.shape[1]
    if (bias == bias[:, :1]).all():
        bias = bias[:, :1]
    return AttentionCall(function, bias, heads, dtype)
