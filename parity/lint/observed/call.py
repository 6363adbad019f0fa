"""One call of an attention, whatever it was made by, and what masked scores say of a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllama.dtypes import parse
from parity.lint.case import Case
from parity.lint.reading import read

# Scores are not that low; a fill, or a fill and a score, is.
SURELY_HIDDEN = -1e3


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of an attention.

    Attributes:
        function: what was called.
        mask: [B or 1, N or 1, T, S], bool with True = seen, or numbers added to the scores, in
            their own dtype; [X, T, S] where rows and heads are one axis.
        heads: N; None where it is not known.
        scores_dtype: short name of the scores' dtype.
        is_causal: the function was told to be causal, as its `mask` already says.
    """

    function: str
    mask: np.ndarray
    heads: int | None
    scores_dtype: str
    is_causal: bool = False

    def case(self, **facts: Any) -> Case:
        """Return the call's mask for the rules, with what else is known about the tokens."""
        said: dict[str, Any] = {"mask": self.mask, "scores_dtype": self.scores_dtype}
        if self.heads is not None:
            said["heads"] = self.heads
        known = {"valid", "lengths", "pad_id", "ids", "segments", "positions"} & facts.keys()
        if self.mask.ndim == 3:  # rows and heads in one axis: each a row, unless rows are known
            said |= {"layout": "bnts"} if known else {"mask": self.mask[:, None]}
        t, s = self.mask.shape[-2:]
        seen = read(said["mask"], None).seen
        if self.is_causal:
            said |= {"is_causal": True, "align": "top_left"}
        elif t < s and not seen[..., -1].any():
            said["capacity"] = s  # slots of a cache, of which nobody says how many are written
        elif t == s and not known and not (valid := seen.any((1, 2))).all():
            said["valid"] = valid
            said["notes"] = ("keys that no query sees are taken for padding; say which are real",)
        return Case(**{**said, **facts})


def of_scores(function: str, scores: np.ndarray, dtype: str) -> AttentionCall | None:
    """Return what masked scores say of their mask; None where they are no attention's.

    What is hidden holds a fill, or a fill and a score: it is given one value, their median.

    Args:
        function: the softmax's name.
        scores: what goes into it, in at least float32.
        dtype: short name of the dtype that it was in.
    """
    hidden = scores <= SURELY_HIDDEN
    if scores.ndim < 3 or scores.ndim == 3 and not _is_of_keys(hidden):
        return None
    bias = np.where(np.isneginf(scores), scores, np.float32(0))
    finite = hidden & np.isfinite(scores)
    if finite.any():
        fills = np.sort(scores[finite])
        bias[finite] = fills[len(fills) // 2]
    bias = bias.astype(parse(dtype))
    if bias.ndim == 3:
        return AttentionCall(function, bias, None, dtype)
    rows, (t, s) = bias.shape[0], bias.shape[-2:]
    bias = bias.reshape(rows, -1, t, s)
    heads = bias.shape[1]
    return AttentionCall(function, bias[:, :1] if _alike(bias) else bias, heads, dtype)


def _alike(bias: np.ndarray) -> bool:
    """Whether all heads have one mask."""
    return bool((bias == bias[:, :1]).all())


def _is_of_keys(hidden: np.ndarray) -> bool:
    """Whether [X, T, S] can be scores of keys: others are of a vocabulary, or of experts.

    Which keys are seen moves on with the query: a stretch whose beginning and end never fall
    back, once what nobody sees is left out.
    """
    if not hidden.any():
        return hidden.shape[1] == hidden.shape[2]
    moving = hidden.shape[1] == hidden.shape[2]
    for one in hidden:
        seen = ~one[:, ~one.all(0)]
        seen = seen[seen.any(1)]
        first, count = seen.argmax(1), seen.sum(1)
        last = seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
        if (last - first + 1 != count).any() or (np.diff(first) < 0).any():
            return False
        if (np.diff(last) < 0).any():
            return False
        moving |= len({*zip(first.tolist(), last.tolist(), strict=True)}) > 1
    return moving
