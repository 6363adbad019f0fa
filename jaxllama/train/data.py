"""From texts to batches: the checkpoint's tokenizer, rows, and Grain's order of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from jaxllama.errors import InputError, join_problems
from jaxllama.files import limits
from jaxllama.files.texts import read_texts
from jaxllama.tokenizer import Tokenizer
from jaxllama.train.config import DataSettings
from jaxllama.train.packing import TokenRows, pack


def read_documents(files: Sequence[str]) -> list[str]:
    """Return the texts of all files, in order.

    Raises:
        InputError: files that are not there, empty, not UTF-8, or have broken lines; all of them.
    """
    texts, problems = [], []
    for name in files:
        try:
            texts += read_texts(Path(name), limits.TRAINING_BYTES)
        except InputError as error:
            problems.append(error.marked)
    if problems:
        raise InputError(problems[0] if len(problems) == 1 else join_problems("data", problems))
    return texts


def encode_documents(
    texts: Sequence[str], tokenizer: Tokenizer, eos_ids: Sequence[int]
) -> list[list[int]]:
    """Return texts as ids: begun as the tokenizer begins a text, ended by the model's first eos.

    Special tokens written in a text are letters: only what we add begins or ends a document.
    """
    end = list(eos_ids[:1])
    return [[*tokenizer.encode(text, specials=False), *end] for text in texts]


def make_rows(documents: Sequence[Sequence[int]], settings: DataSettings, vocab: int) -> TokenRows:
    """Return documents as rows to train on.

    Raises:
        InputError: there are fewer rows than a batch has, or ids outside the vocabulary.
    """
    where = f"[data] {', '.join(settings.files[:3])}"
    if (highest := max((max(d, default=0) for d in documents), default=0)) >= vocab:
        raise InputError(
            f"{where}: token id {highest}, the model's vocabulary is 0 to {vocab - 1}; the "
            "checkpoint's tokenizer is not the model's"
        )
    rows = pack(documents, settings.length, packing=settings.packing)
    if len(rows.tokens) < settings.batch:
        raise InputError(
            f"{where}: {sum(map(len, documents))} tokens make {len(rows.tokens)} rows of "
            f"{settings.length}, too few for a batch of {settings.batch}; give more text, or a "
            "smaller length or batch"
        )
    return rows


def digest_of(rows: TokenRows) -> str:
    """Return what tells these rows from others."""
    found = hashlib.sha256(repr(rows.tokens.shape).encode())
    for part in rows:
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


class Batches:
    """Batches of rows without end, in an order anew for each pass, which can be gone on with.

    Every host has all rows and makes the whole batch, of which its devices take their part: rows
    may be on any of them, or on several.

    Args:
        rows: to take from.
        settings: batch and seed.
    """

    def __init__(self, rows: TokenRows, settings: DataSettings) -> None:
        self._rows = rows
        order = grain.MapDataset.range(len(rows.tokens)).shuffle(seed=settings.seed).repeat()
        batches = order.batch(settings.batch, drop_remainder=True)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        self._iterator = iter(batches.to_iter_dataset(options))

    def __next__(self) -> TokenRows:
        return self._rows.take(np.asarray(next(self._iterator)))

    @property
    def state(self) -> str:
        """Where it stands, as JSON."""
        return json.dumps(self._iterator.get_state())

    @state.setter
    def state(self, state: str) -> None:
        self._iterator.set_state(json.loads(state))
