"""How far a failure spreads over a tap: which tokens, and which heads.

NumPy alone. Shapes: B batch, T tokens, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.comparison.difference import TapDifference
from parity.comparison.reference import ReferenceTap


@dataclass(frozen=True)
class Extent:
    """The part of a failing tap that is beyond its limit.

    Attributes:
        tokens: how many tokens are.
        of_tokens: how many were compared.
        first: the earliest of them, by row and then token.
        heads: which heads are, where the tap has heads and its values were still at hand.
        of_heads: how many heads it has; 0 where `heads` says nothing.
    """

    tokens: int
    of_tokens: int
    first: dict[str, int]
    heads: tuple[int, ...] = ()
    of_heads: int = 0


def extent(
    found: TapDifference,
    rho: np.ndarray,
    limit: float,
    reference: ReferenceTap,
    subject: np.ndarray | None,
    floor: np.ndarray,
) -> Extent | None:
    """Return which tokens and heads of a tap are beyond `limit`, None where none is.

    Args:
        found: the tap's comparison.
        rho: error over noise [B, T], for attention maps [B, N, T].
        limit: on rho.
        reference: the reference's side.
        subject: the tap itself where it is still at hand; heads of [B, T, N, H] need it.
        floor: noise, of rho's shape.
    """
    over = ~(rho <= limit) & found.live
    if reference.axes[:1] != "B" or rho.ndim < 2 or not over.any():
        return None
    tokens, compared = over, found.live
    heads, of_heads = np.zeros(0, int), 0
    if reference.axes == "BNTS":
        heads, of_heads = np.flatnonzero(over.any((0, 2))), over.shape[1]
        tokens, compared = np.any(over, axis=1), np.any(found.live, axis=1)
    elif (
        len(reference.axes) == 4 and subject is not None and subject.shape == reference.array.shape
    ):
        heads, of_heads = _heads(reference, subject, limit * floor, found.live), subject.shape[2]
    row, token = (int(i) for i in np.argwhere(tokens)[0])
    return Extent(
        tokens=int(tokens.sum()),
        of_tokens=int(compared.sum()),
        first={"B": row, "T": token},
        heads=tuple(int(head) for head in heads),
        of_heads=of_heads,
    )


def _heads(
    reference: ReferenceTap, subject: np.ndarray, allowed: np.ndarray, live: np.ndarray
) -> np.ndarray:
    """Return the heads whose share of the difference alone is more than a token is allowed."""
    with np.errstate(invalid="ignore", over="ignore"):
        delta = subject.astype(np.float64) - reference.array
        error = np.sqrt(np.einsum("btnh,btnh->btn", delta, delta)) / reference.sizes[0][..., None]
    return np.flatnonzero((~(error <= allowed[..., None]) & live[..., None]).any((0, 1)))
