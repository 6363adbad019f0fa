"""Texts to measure a model on: read from files, made into batches of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.errors import InputError, argument, join_problems
from jaxllama.files.texts import read_texts
from parity.inputs import Inputs, visible_keys
from parity.options import checked_length
from parity.runner.prompt import encoder
from parity.texts import prose

# Tokens of a row unless told: SmolLM2's maps are measured in 15 s.
DEFAULT_LENGTH = 512
# Of fewer tokens no figure says anything: every map has few singular values and a large first key.
LEAST_TOKENS = 8
# Bytes of one layer's float32 weights that are alive at once where there are several rows.
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class TextRows:
    """Texts as token ids, each cut to one length.

    Attributes:
        source: what they are called in messages.
        rows: ids of each.
        truncated: how many were cut.
        notes: remarks.
    """

    source: str
    rows: tuple[tuple[int, ...], ...]
    truncated: int = 0
    notes: tuple[str, ...] = ()


def text_rows(
    texts: Sequence[str], source: str, checkpoint: Checkpoint, length: int, *, built_in: bool
) -> TextRows:
    """Return texts as ids of the checkpoint's tokenizer.

    Args:
        texts: at least one.
        source: what to call them.
        checkpoint: whose tokenizer they are read by.
        length: most tokens of each.
        built_in: whether bytes do where there is no tokenizer.

    Raises:
        InputError: a text is too short, an id is outside the vocabulary, or there is no tokenizer.
    """
    encode, notes = encoder(checkpoint, None if built_in else texts[0])
    vocabulary = checkpoint.config.vocab_size
    problems, rows, truncated = [], [], 0
    for number, text in enumerate(texts, 1):
        ids = _encoded(encode, text)
        name = f"text {number}" if len(texts) > 1 else "the text"
        if len(ids) < LEAST_TOKENS:
            tokens = "1 token" if len(ids) == 1 else f"{len(ids)} tokens"
            problems.append(
                f"{name} has {tokens}, expected at least {LEAST_TOKENS}; give a longer one"
            )
        elif strange := [i for i in ids if not 0 <= i < vocabulary]:
            problems.append(
                f"{name} has token id {strange[0]}, outside the vocabulary of {vocabulary}; use "
                "the checkpoint's own tokenizer"
            )
        truncated += len(ids) > length
        rows.append(tuple(ids[:length]))
    if problems:
        raise InputError(join_problems(source, problems))
    return TextRows(source, tuple(rows), truncated, tuple(notes))


def _encoded(encode: Callable[[str], Sequence[int]], text: str) -> list[int]:
    encoded = encode(text)
    return [int(i) for i in getattr(encoded, "ids", encoded)]


def given_rows(path: Path | None, checkpoint: Checkpoint, length: int | None) -> TextRows:
    """Return the rows of a file, or of the built-in text; raises as its parts do."""
    most = checked_length(length, DEFAULT_LENGTH, checkpoint.config)
    if most < LEAST_TOKENS:
        raise InputError(f"{argument('length', most)}: expected at least {LEAST_TOKENS} tokens")
    if path is None:
        return text_rows([prose()], "the built-in text", checkpoint, most, built_in=True)
    return text_rows(read_texts(path), str(path), checkpoint, most, built_in=False)


def batches(rows: Sequence[Sequence[int]], heads: int, pad: int | None) -> list[Inputs]:
    """Return rows as batches of one shape, padded on the right, as many rows each as there is room.

    Args:
        rows: ids of each.
        heads: N of the model that is to run them.
        pad: what fills the end of shorter rows; id 0 if None.
    """
    columns = max(map(len, rows))
    most = max(1, min(len(rows), _BATCH_BYTES // (4 * heads * columns**2)))
    made = []
    for first in range(0, len(rows), most):
        part = rows[first : first + most]
        tokens = np.full((len(part), columns), 0 if pad is None else pad, np.int32)
        valid = np.zeros(tokens.shape, bool)
        for at, row in enumerate(part):
            tokens[at, : len(row)], valid[at, : len(row)] = row, True
        positions = np.where(valid, np.arange(columns), 0).astype(np.int32)
        made.append(Inputs("text", tokens, positions, valid, visible_keys(valid)))
    return made
