"""Encoded lines as batches, one of three ways, all of which must give one perplexity.

Shapes: B batch, T columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity.inputs import Inputs, visible_keys
from parity.quality.examples import EncodedExample

LAYOUTS = ("padded", "packed", "single")
# Bytes of one batch's float32 logits, of each of the two models.
_LOGITS_BYTES = 1 << 27


@dataclass(frozen=True)
class Passage:
    """What a model is given at once of a line.

    Attributes:
        example: index of the line's.
        ids: token ids.
        first: index of the first that is foretold.
    """

    example: int
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class ForetoldBatch:
    """A batch, and which of its tokens are foretold.

    Attributes:
        inputs: the batch.
        successors: (row, column, id of the next token) where the next token counts.
        owners: of each, the index of its example.
    """

    inputs: Inputs
    successors: list[tuple[int, int, int]]
    owners: np.ndarray


def passages(examples: Sequence[EncodedExample], length: int) -> list[Passage]:
    """Return lines in pieces of at most `length` tokens, in which each token is foretold once.

    Pieces of a text overlap by one token, which foretells the first of the next. A reference
    stands behind its prompt and is in one piece.
    """
    found = []
    for number, one in enumerate(examples):
        if one.prompt:
            found.append(Passage(number, one.prompt + one.text, len(one.prompt)))
            continue
        for start in range(0, len(one.text) - 1, length - 1):
            found.append(Passage(number, one.text[start : start + length], 1))
    return found


def lay_out(
    parts: Sequence[Passage], layout: str, vocabulary: int, pad: int | None
) -> list[ForetoldBatch]:
    """Return pieces as batches.

    Args:
        parts: at least one.
        layout: `padded` on the left, as prompts are; `packed`, several in a row; or `single`, a
            row each by itself.
        vocabulary: V, by which the rows of a batch are limited.
        pad: what fills rows; id 0 if None.
    """
    if layout == "single":
        rows = [[part] for part in parts]
        return [_batch([row], len(row[0].ids), pad, packed=False) for row in rows]
    longest = max(len(part.ids) for part in parts)
    rows = _packed(parts, longest) if layout == "packed" else [[part] for part in parts]
    columns = max(sum(len(part.ids) for part in row) for row in rows)
    most = max(1, _LOGITS_BYTES // (4 * vocabulary * columns))
    # As equal as can be: another number of rows is another program to compile.
    size = -(-len(rows) // -(-len(rows) // most))
    return [
        _batch(rows[at : at + size], columns, pad, packed=layout == "packed")
        for at in range(0, len(rows), size)
    ]


# Short texts are put together up to so many tokens, or to the longest text's.
_PACKED_TOKENS = 256


def _packed(parts: Sequence[Passage], longest: int) -> list[list[Passage]]:
    """Return rows of several pieces, in their order."""
    room, rows, used = max(longest, _PACKED_TOKENS), [list[Passage]()], 0
    for part in parts:
        if used + len(part.ids) > room:
            rows.append([])
            used = 0
        rows[-1].append(part)
        used += len(part.ids)
    return rows


def _batch(
    rows: Sequence[Sequence[Passage]], columns: int, pad: int | None, *, packed: bool
) -> ForetoldBatch:
    tokens = np.full((len(rows), columns), 0 if pad is None else pad, np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    valid = np.zeros(tokens.shape, bool)
    successors, owners = [], []
    for row, parts in enumerate(rows):
        at = columns - sum(len(part.ids) for part in parts)
        for number, part in enumerate(parts):
            place = slice(at, at + len(part.ids))
            tokens[row, place], valid[row, place] = part.ids, True
            positions[row, place] = np.arange(len(part.ids))
            segments[row, place] = number
            for i in range(part.first, len(part.ids)):
                successors.append((row, at + i - 1, part.ids[i]))
                owners.append(part.example)
            at = place.stop
    documents = segments if packed else None
    seen = visible_keys(valid, documents)
    inputs = Inputs("text", tokens, positions, valid, seen, segments=documents)
    return ForetoldBatch(inputs, successors, np.array(owners))
