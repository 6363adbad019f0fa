"""One batch of tokens, what each must see, and how it is cut, joined and fed.

Shapes: B batch, T tokens; the mask's last axis counts keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

# For annotations alone: what is saved is judged where there is NumPy and no jaxtyping.
with suppress(ModuleNotFoundError):
    from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch, and what each of its tokens must see.

    Attributes:
        name: the scenario's.
        tokens: ids [B T], int32.
        positions: rotary positions [B T] in tokens, int32; 0 on pads.
        valid: False on pads [B T].
        mask: True where the query (axis 1) must see the key (axis 2) [B T T]; rows of pads are
            empty.
        segments: document number of each token [B T], int32; None when a row is one document.
        window: number of keys a query sees at most, itself included; None for all.
        notes: remarks the report must carry.
    """

    name: str
    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    valid: Bool[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T T"]
    segments: Int[np.ndarray, "B T"] | None = None
    window: int | None = None
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a SHA-256 of everything a model is given, in hexadecimal."""
        sha = hashlib.sha256()
        for array in (self.tokens, self.positions, self.valid, self.mask):
            sha.update(repr((array.shape, array.dtype.str)).encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def batch_alike(inputs: Sequence[Inputs]) -> list[list[Inputs]]:
    """Group scenarios that can run as one batch: of one length, and masked by the same rules.

    A single row stays by itself: so it is run in use, and code that treats one row apart shows.
    """
    groups: dict[tuple[bool, int, int | None, bool], list[Inputs]] = {}
    for one in inputs:
        batch, columns = one.tokens.shape
        rules = batch == 1, columns, one.window, one.segments is None
        groups.setdefault(rules, []).append(one)
    return list(groups.values())


def join_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Return one batch of the rows of all parts, as `batch_alike` has grouped them."""
    if len(parts) == 1:
        return parts[0]
    assert len(batch_alike(parts)) == 1, [part.name for part in parts]

    def rows(field: str) -> np.ndarray:
        return np.concatenate([getattr(part, field) for part in parts])

    return Inputs(
        name="+".join(part.name for part in parts),
        tokens=rows("tokens"),
        positions=rows("positions"),
        valid=rows("valid"),
        mask=rows("mask"),
        segments=None if parts[0].segments is None else rows("segments"),
        window=parts[0].window,
        notes=tuple(note for part in parts for note in part.notes),
    )


def prompt_columns(length: int) -> int:
    """Return how many of a scenario's columns are the prompt when it is decoded: two thirds."""
    return max(1, 2 * length // 3)


def visible_keys(
    valid: Bool[np.ndarray, "B T"],
    segments: Int[np.ndarray, "B T"] | None = None,
    window: int | None = None,
) -> Bool[np.ndarray, "B T T"]:
    """Return which key each query must see.

    A key is seen when it does not come later in the row than the query, neither is a pad, both
    belong to the same document, and it is among the last `window` columns, the query's included.
    """
    columns = np.arange(valid.shape[1])
    distance = columns[:, None] - columns[None, :]  # from key to query
    seen = (distance >= 0) & valid[:, :, None] & valid[:, None, :]
    if segments is not None:
        seen &= segments[:, :, None] == segments[:, None, :]
    if window is not None:
        seen &= distance < window
    return seen


# Single tokens fed at the end of a decode run, after a prompt fed in two pieces.
DECODE_STEPS = 3


def decode_chunks(inputs: Inputs) -> list[int]:
    """Split a scenario's columns: a prompt in two unequal pieces, then one token at a time."""
    columns = inputs.tokens.shape[1]
    singles = min(DECODE_STEPS, max(columns - 2, 0))
    prompt = columns - singles
    first = max(1, prompt * 2 // 3)
    return [size for size in (first, prompt - first, *[1] * singles) if size]


def inputs_facts(inputs: Inputs) -> dict[str, Any]:
    """Return what reports say of a scenario's inputs."""
    batch, columns = inputs.tokens.shape
    return {
        "scenario": inputs.name,
        "batch": batch,
        "tokens": columns,
        "real_tokens": int(inputs.valid.sum()),
        "positions": [int(inputs.positions.min()), int(inputs.positions.max())],
        "sha256": inputs.digest(),
    }
