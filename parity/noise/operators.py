"""Which taps are sums, of which factors, and how a sum's rounding reaches the tap.

NumPy alone. Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim;
of sums: G groups, R rows, O outputs, K terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from parity.subjects.base import ReadArrays
from parity.taps import OPERANDS, WEIGHT_OF, split_name

# A weight by its canonical name, in the dtype it is stored in.
ReadWeight = Callable[[str], np.ndarray]

NARROW = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
# What stays float32 in every narrower dtype.
WIDE_TAPS = ("layers.attn_scores", "layers.attn_probs", "logits")


@dataclass(frozen=True)
class Numbers:
    """What operators go by, beside their operands: the config's fields."""

    eps: float
    scale: float
    tied: bool


@dataclass(frozen=True)
class SummedTap:
    """One tap of one operator that sums, on given operands.

    Attributes:
        group: rows of the tap's `live` make one group of sums together: [G R K] has R = rows and
            G = 1 where they share the second factors; else R = 1.
        factors: of row numbers (counted through `live`), both factors of their terms, float32:
            [G R K] and [G O K].
        finish: of row numbers and their sums [rows, O], float32: the tap [rows, elements], rounded
            as the operator rounds.
        carry: of row numbers, sums and an error of each [rows, O]: the error in the tap [rows,
            elements], by the operator's derivative; float64.
    """

    factors: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray]
    carry: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def sums(
        self, rows: np.ndarray, sum_up: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return what `sum_up` makes of the rows' factors [rows, O]."""
        return sum_up(*self.factors(rows)).reshape(len(rows), -1)


class SummedTaps:
    """Makes a `SummedTap` of the reference's values, as an isolated run is given them.

    Args:
        weight: reads a weight.
        numbers: of the configuration.
    """

    def __init__(self, weight: ReadWeight, numbers: Numbers) -> None:
        self._weight, self._numbers = weight, numbers

    def of(self, name: str, reference: ReadArrays, mask: np.ndarray, lane: str) -> SummedTap | None:
        """Return how a tap is summed, None where its operator does not sum or lacks an operand.

        Args:
            name: of the tap.
            reference: the reference's taps by full name, this stage's and the one before's output.
            mask: what each query sees [B T S].
            lane: `f32` or `bf16`.
        """
        kind, layer = split_name(name)
        dtype = NARROW[lane]
        operands = [
            operand.replace("layers.", f"layers.{layer}.", 1) for operand in OPERANDS.get(kind, ())
        ]
        if kind == "norm":
            operands = [n for n in reference if split_name(n)[0] == "layers.output"][-1:]
        if not operands or any(operand not in reference for operand in operands):
            return None
        given = [_rounded(reference[o], _dtype(o, dtype)) for o in operands]
        if kind == "layers.attn_scores":
            return _scores(given[0], given[1], self._numbers.scale)
        if kind == "layers.attn_probs":
            return _softmax(given[0], mask)
        if kind == "layers.attn_context":
            return _context(_rounded(given[0], dtype), given[1], dtype)
        if kind not in WEIGHT_OF:
            return None
        stored = WEIGHT_OF[kind].replace("layers.", f"layers.{layer}.", 1)
        if kind == "logits" and self._numbers.tied:
            stored = WEIGHT_OF["embed"]
        weight = _rounded(self._weight(stored), dtype)
        if weight.ndim == 1:
            return _norm(given[0], weight, self._numbers.eps, dtype)
        return _product(given[0], weight, _dtype(name, dtype))


def _dtype(name: str, dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if split_name(name)[0] in WIDE_TAPS else dtype


def _rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values as an operator of this dtype is given them, in float32."""
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False).astype(np.float32, copy=False)


def _product(x: np.ndarray, weight: np.ndarray, dtype: np.dtype) -> SummedTap:
    """Return x [B T K ..] times a weight [O K]."""
    flat = x.reshape(x.shape[0] * x.shape[1], -1)
    return SummedTap(
        lambda rows: (flat[None, rows], weight[None]),
        lambda rows, sums: _rounded(sums, dtype),
        lambda rows, sums, error: error,
    )


def _scores(q: np.ndarray, k: np.ndarray, scale: float) -> SummedTap:
    """Return queries [B T N H] times keys [B S K H]; a row is one query of one head."""
    B, T, N, _ = q.shape
    group = N // k.shape[2]

    def factors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        b, n, t = np.unravel_index(rows, (B, N, T))
        return q[b, t, n][:, None], k[b, :, n // group]

    return SummedTap(
        factors,
        lambda rows, sums: sums * np.float32(scale),
        lambda rows, sums, error: error * scale,
    )


def _softmax(scores: np.ndarray, mask: np.ndarray) -> SummedTap:
    """Return a softmax over visible keys of scores [B N T S]; what is summed are exponentials."""
    flat = scores.reshape(-1, scores.shape[-1])
    shape = scores.shape[:3]

    def powers(rows: np.ndarray) -> np.ndarray:
        b, _, t = np.unravel_index(rows, shape)
        seen = np.where(mask[b, t], flat[rows], -np.inf)
        return np.exp(seen - seen.max(-1, keepdims=True), dtype=np.float32)

    def factors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = powers(rows)[:, None]
        return terms, np.ones_like(terms)

    return SummedTap(
        factors,
        lambda rows, sums: powers(rows) / sums,
        lambda rows, sums, error: powers(rows) / sums * (error / sums),
    )


def _context(probs: np.ndarray, v: np.ndarray, dtype: np.dtype) -> SummedTap:
    """Return weights [B N T S] times values [B S K H]; a row is one query with all its heads."""
    B, N, T, S = probs.shape
    group = N // v.shape[2]

    def factors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        b, t = np.unravel_index(rows, (B, T))
        values = v[b].transpose(0, 2, 3, 1)[:, np.arange(N) // group]  # [rows N H S]
        weights = probs[b, :, t]
        return weights.reshape(-1, 1, S), values.reshape(-1, v.shape[3], S)

    return SummedTap(
        factors, lambda rows, sums: _rounded(sums, dtype), lambda rows, sums, error: error
    )


def _norm(x: np.ndarray, weight: np.ndarray, eps: float, dtype: np.dtype) -> SummedTap:
    """Return x [B T D] over its root mean square; what is summed are its squares."""
    D = x.shape[-1]
    flat = x.reshape(-1, D)

    def scaled(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return _rounded(_rounded(flat[rows] / np.sqrt(mean), dtype) * weight, dtype)

    def finish(rows: np.ndarray, sums: np.ndarray) -> np.ndarray:
        return scaled(rows, sums / np.float32(D) + np.float32(eps))

    def carry(rows: np.ndarray, sums: np.ndarray, error: np.ndarray) -> np.ndarray:
        # d(x / r) = -x / r * dr / r, and r moves by half of what its square does.
        return np.asarray(abs(scaled(rows, sums / D + eps)) * (error / (2 * (sums + D * eps))))

    return SummedTap(lambda rows: (flat[rows, None], flat[rows, None]), finish, carry)
