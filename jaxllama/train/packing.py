"""Documents as rows of one length, several in a row.

Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class TokenRows(NamedTuple):
    """Rows of documents, and what is what in them: nothing is read off the ids.

    Attributes:
        tokens: ids; 0 on pads.
        positions: each token's place in its piece of a document, from 0.
        segments: number of the piece in its row.
        valid: False on pads.
    """

    tokens: Int[np.ndarray, "R T"]
    positions: Int[np.ndarray, "R T"]
    segments: Int[np.ndarray, "R T"]
    valid: Bool[np.ndarray, "R T"]

    def take(self, rows: Int[np.ndarray, " B"]) -> TokenRows:
        """Return some of the rows."""
        return TokenRows(*(part[rows] for part in self))


def pieces(document: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    """Yield a document in pieces of at most `length` tokens.

    A piece begins with the last token of the one before, so that every token but the first is
    predicted once. What is of one token is left out: nothing in it is.
    """
    for start in range(0, max(len(document) - 1, 0), length - 1):
        yield document[start : start + length]


def pack(documents: Sequence[Sequence[int]], length: int, *, packing: bool = True) -> TokenRows:
    """Return documents as rows.

    Args:
        documents: token ids of each.
        length: T.
        packing: whether pieces share rows, each put into the row that it fits best, the longest
            first; else each has a row.
    """
    cut = [piece for document in documents for piece in pieces(document, length)]
    rows: list[list[Sequence[int]]] = []
    if not packing:
        rows = [[piece] for piece in cut]
    else:
        room: list[tuple[int, int]] = []  # how many tokens a row still takes, in order
        for piece in sorted(cut, key=len, reverse=True):
            at = bisect_left(room, (len(piece), -1))
            left, row = room.pop(at) if at < len(room) else (length, len(rows))
            if row == len(rows):
                rows.append([])
            rows[row].append(piece)
            if left - len(piece) > 1:  # a piece has two tokens at least
                insort(room, (left - len(piece), row))
    return _laid_out(rows, length)


def _laid_out(rows: Sequence[Sequence[Sequence[int]]], length: int) -> TokenRows:
    shape = len(rows), length
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    valid = np.zeros(shape, np.bool_)
    for row, held in enumerate(rows):
        start = 0
        for number, piece in enumerate(held):
            place = row, slice(start, start + len(piece))
            tokens[place], positions[place] = piece, np.arange(len(piece))
            segments[place], valid[place] = number, True
            start += len(piece)
    return TokenRows(tokens, positions, segments, valid)
