"""What is run: token batches with explicit positions, validity and masks.

Masks are built here from first principles in plain numpy, on purpose apart from
`jaxllama.masks`: they are what the masks under test are compared with.

Shapes: B batch, T tokens; the mask's last axis counts keys.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument
from parity.inputs import Inputs, prompt_columns, visible_keys
from parity.options import checked_length
from parity.texts import prose

SCENARIOS = (
    "causal",
    "long_positions",
    "right_padded",
    "left_padded",
    "packed",
    "windowed",
    "mixed_lengths",
)
DEFAULT_SCENARIOS = SCENARIOS[:4]
# Ragged batches, the one that a cache is tried on first: each row's last tokens are real.
RAGGED = ("left_padded", "mixed_lengths", "right_padded")

# Prime, so that they equal no batch, head or window size, and no block size divides them. The
# first is long because wrong rotations hide in short prompts: an angle nobody sees at token 4 is
# half a radian at 512.
# The others share one shape: a compiled model is reused, where compiling it costs most of a run.
DEFAULT_LENGTHS = dict.fromkeys(SCENARIOS, 17) | {"causal": 503}
ROWS = 3
# One token in so many of running text may be one that text never has.
MARKED = 8
# Of them these many come before others: bos, the last row, eos, the first row.
LEADING = 4
# Past the 8192 tokens that Llama 3 was first trained on, where scaled frequencies matter most.
LONG_POSITION_STARTS = (8209, 12301, 20011)

Tokenizer = Callable[[str], Sequence[int]] | Any
Prompt = str | Sequence[int]


def scenario(
    name: str,
    tokenizer: Tokenizer,
    config: LlamaConfig,
    *,
    length: int | None = None,
    prompt: Prompt | None = None,
    specials: Sequence[int] = (),
) -> Inputs:
    """Build a scenario's inputs.

    `causal` is one row of running text, with what text never has strewn in: special tokens, the
    vocabulary's first and last rows. `long_positions` starts its rows past position 8192.
    `right_padded` and `left_padded` are ragged batches, positions counted from each row's first
    real token. `packed` puts several documents in a row, positions starting anew in each, and
    pads at one row's end. `windowed` limits how far back a token sees. `mixed_lengths` pads
    prompts on the right and then goes on with real tokens in every row, as batched decoding
    does.

    Args:
        name: one of `SCENARIOS`.
        tokenizer: a function from text to ids, or an object with such an `encode`; unused when
            the prompt is given as ids.
        config: the model's; its vocabulary bounds the ids, its pad token fills pads.
        length: T; by default the scenario's own, cut to the context, or the prompt's length.
        prompt: text or ids to use in place of the built-in text; nothing is strewn into it.
        specials: ids of the tokenizer's special tokens; those of the configuration are known.

    Raises:
        InputError: an unknown scenario, a length below 1 or beyond the context, an empty prompt, or
            an id outside the vocabulary.
    """
    source = _source(name, tokenizer, config, length, prompt)
    if prompt is None:
        source = replace(source, marks=_marks(config, specials))
    return _BUILDERS[name](name, source)


@dataclass(frozen=True)
class Shape:
    """What a scenario measures; nothing of it is built.

    Attributes:
        name: the scenario's.
        rows: B.
        length: T, in tokens.
    """

    name: str
    rows: int
    length: int

    @property
    def batch(self) -> tuple[str | None, bool, int]:
        """What scenarios that `batch_alike` puts together have in common."""
        alone = self.name if self.name in ("packed", "windowed") else None
        return alone, self.rows == 1, self.length


def shape(
    name: str,
    tokenizer: Tokenizer,
    config: LlamaConfig,
    *,
    length: int | None = None,
    prompt: Prompt | None = None,
) -> Shape:
    """Return what a scenario would measure; all as of `scenario`."""
    rows = 1 if name == "causal" else ROWS
    return Shape(name, rows, _source(name, tokenizer, config, length, prompt).length)


def _source(
    name: str, tokenizer: Tokenizer, config: LlamaConfig, length: int | None, prompt: Prompt | None
) -> _Source:
    """Check what a scenario is to be built of."""
    if name not in SCENARIOS:
        raise InputError(f"scenario {name!r}: expected one of {', '.join(SCENARIOS)}")
    try:
        length = None if length is None else operator.index(length)
    except TypeError:
        raise InputError(f"scenario {name}: length {length!r}: expected a whole number") from None
    if length is not None and length < 1:
        raise InputError(f"scenario {name}: length {length}, expected at least 1 token")
    ids = _ids(prose() if prompt is None else prompt, tokenizer, config)
    if length is None and prompt is not None:
        remedy = f"shorten the prompt, or cut it by {argument('length')}"
        for problem in config.context_problems(len(ids), "prompt", remedy):
            raise InputError(problem)
        length = len(ids)
    return _Source(ids, checked_length(length, DEFAULT_LENGTHS[name], config), config)


def _marks(config: LlamaConfig, specials: Sequence[int]) -> tuple[int, ...]:
    """Return the ids that text never has, the most telling first."""
    bos, eos = config.bos_token_id, config.eos_token_ids
    known = (bos, config.vocab_size - 1, *eos[:1], 0, *eos[1:], *sorted(specials))
    return tuple(dict.fromkeys(i for i in known if i is not None and 0 <= i < config.vocab_size))


@dataclass(frozen=True)
class _Source:
    """Where rows take their tokens from."""

    ids: Int[np.ndarray, " n"]
    length: int
    config: LlamaConfig
    marks: tuple[int, ...] = ()

    def rows(self, count: int) -> Int[np.ndarray, "B T"]:
        """Return `count` stretches of the text, each starting elsewhere; it repeats at its end."""
        starts = np.arange(count) * (len(self.ids) // count)
        columns = starts[:, None] + np.arange(self.length)
        return self.ids[columns % len(self.ids)]

    def marked_row(self) -> Int[np.ndarray, "1 T"]:
        """Return one stretch of the text, at even distances in it as many marks as there is room
        for: of too many, some from all of them.
        """
        row, count = self.rows(1), min(len(self.marks), self.length // MARKED)
        if count:
            first, rest = self.marks[:LEADING], self.marks[LEADING:]
            places = np.linspace(0, len(rest) - 1, max(0, count - len(first))).astype(int)
            columns = ((np.arange(count) + 0.5) * self.length / count).astype(int)
            row[0, columns] = [*first, *(rest[i] for i in places)][:count]
        return row

    def ragged(self, count: int) -> list[int]:
        """Return `count` lengths, falling from T by equal steps, at least 1."""
        return [max(1, self.length * (count - i) // count) for i in range(count)]


def _causal(name: str, source: _Source) -> Inputs:
    return _assemble(name, source, source.marked_row())


def _long_positions(name: str, source: _Source) -> Inputs:
    tokens = source.rows(len(LONG_POSITION_STARTS))
    positions = np.array(LONG_POSITION_STARTS)[:, None] + np.arange(source.length)
    return _assemble(name, source, tokens, positions=positions)


def _right_padded(name: str, source: _Source) -> Inputs:
    valid = np.arange(source.length) < np.array(source.ragged(ROWS))[:, None]
    return _assemble(name, source, source.rows(ROWS), valid=valid)


def _left_padded(name: str, source: _Source) -> Inputs:
    valid = np.arange(source.length)[::-1] < np.array(source.ragged(ROWS))[:, None]
    return _assemble(name, source, source.rows(ROWS), valid=valid)


def _packed(name: str, source: _Source) -> Inputs:
    T = source.length
    columns = np.arange(T)
    two = (columns >= 2 * T // 5).astype(int)
    three = (columns >= T // 4).astype(int) + (columns >= 7 * T // 10)
    one = np.zeros(T, int)
    valid = np.stack([columns < T, columns < max(1, T - T // 8), columns < T])
    segments = np.stack([two, three, one])
    return _assemble(name, source, source.rows(ROWS), valid=valid, segments=segments)


def _windowed(name: str, source: _Source) -> Inputs:
    window = max(2, source.length // 3)
    while source.length % window == 0:  # a window that divides the length hides block faults
        window += 1
    return _assemble(name, source, source.rows(ROWS), window=window)


def _mixed_lengths(name: str, source: _Source) -> Inputs:
    columns, prompt = np.arange(source.length), prompt_columns(source.length)
    lengths = [max(1, prompt * (ROWS - i) // ROWS) for i in range(ROWS)]
    valid = (columns < np.array(lengths)[:, None]) | (columns >= prompt)
    return _assemble(name, source, source.rows(ROWS), valid=valid)


_BUILDERS = {
    "causal": _causal,
    "long_positions": _long_positions,
    "right_padded": _right_padded,
    "left_padded": _left_padded,
    "packed": _packed,
    "windowed": _windowed,
    "mixed_lengths": _mixed_lengths,
}


def _assemble(
    name: str,
    source: _Source,
    tokens: np.ndarray,
    *,
    positions: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    segments: np.ndarray | None = None,
    window: int | None = None,
) -> Inputs:
    if valid is None:
        valid = np.ones(tokens.shape, bool)
    if positions is None:
        positions = _count_within(valid, segments)
    pad = source.config.pad_token_id
    tokens = np.where(valid, tokens, 0 if pad is None else pad)
    return Inputs(
        name=name,
        tokens=tokens.astype(np.int32),
        positions=np.where(valid, positions, 0).astype(np.int32),
        valid=valid,
        mask=visible_keys(valid, segments, window),
        segments=None if segments is None else segments.astype(np.int32),
        window=window,
        notes=_notes(int(positions.max()), source.config),
    )


def _count_within(valid: np.ndarray, segments: np.ndarray | None) -> np.ndarray:
    """Return each token's number among the real tokens of its row, or of its document."""
    if segments is None:
        return valid.cumsum(axis=1) - 1
    columns = np.arange(valid.shape[1])
    earlier = (segments[:, :, None] == segments[:, None, :]) & valid[:, None, :]
    return (earlier & (columns[None, :] < columns[:, None])).sum(axis=2)


def _notes(last_position: int, config: LlamaConfig) -> tuple[str, ...]:
    stated = config.max_position_embeddings
    if stated is None or last_position < stated:
        return ()
    return (
        f"positions reach {last_position}, past the stated context of {stated} tokens "
        "(max_position_embeddings)",
    )


def _ids(prompt: Prompt, tokenizer: Tokenizer, config: LlamaConfig) -> Int[np.ndarray, " n"]:
    """Return a prompt's token ids, checked against the vocabulary."""
    if isinstance(prompt, str):
        encoded = getattr(tokenizer, "encode", tokenizer)(prompt)
        ids = np.asarray(getattr(encoded, "ids", encoded))
    else:
        ids = np.asarray(prompt)
    # Of an empty text a tokenizer that begins every text with a token would make one id.
    if ids.size == 0 or (isinstance(prompt, str) and not prompt):
        raise InputError("the prompt is empty: give at least one token of text or one id")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"prompt ids: {ids.dtype} {ids.shape}, expected one row of integers")
    outside = np.flatnonzero((ids < 0) | (ids >= config.vocab_size))
    if outside.size:
        first = int(outside[0])
        raise InputError(
            f"token id {ids[first]} at index {first} of the prompt is outside the vocabulary of "
            f"{config.vocab_size} ids (0 to {config.vocab_size - 1}); {outside.size} such ids in "
            "all. Use the checkpoint's own tokenizer"
        )
    return ids.astype(np.int64)
