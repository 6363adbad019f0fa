"""A mask with all that is known about it: what a static rule is given to read.

Shape letters: B batch, N heads, T queries, S keys.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from jaxllama import dtypes
from jaxllama.errors import InputError, argument, join_problems
from jaxllama.masks import Mask, Tokens, causal, padding, segments, window
from jaxllama.memory import free_bytes, size_in_words
from parity.lint.facts import Layout, ReadFacts, Side, read_axes, read_lengths, read_validity
from parity.lint.reading import MaskReading, read
from parity.lint.slots import Slots

_FACTS = ("ids", "labels", "positions", "segments", "valid")
Use = Literal["bool", "additive"]
# What the rules hold at once of a query and a key: the growth of the peak of
# `parity lint 'causal()'` with T x S (6.7 in each of three rows; 9 of a bool array, 12 of float32).
_BYTES_OF_A_CELL = 7


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One mask and its surroundings; whatever is not known stays None, and its rules are not run.

    Attributes:
        mask: the array as given, of any dtype; or None where `spec` is looked at instead.
        spec: a rule of `jaxllama.masks` in place of an array.
        intended: what should be seen. "default": causal, and padding and segments where these are
            known; None: nothing is intended, and rules that compare are not run.
        use: whether a kernel takes the array as bool (True = seen) or adds it to the scores. By
            default floats are added.
        layout: what the first axis of a three-axis mask is, where the receiver is known to read it
            so: batch ("bts"), heads ("nts"), or the heads of one row after those of another
            ("bnts"); that one is taken apart, into [B, N, T, S].
        ids: token ids [B, T] or [B, S].
        labels: training labels, shaped like `ids`.
        positions: rotary positions [B, T] or [B, S].
        segments: document numbers [B, T] or [B, S].
        valid: False on padding, [B, T] or [B, S]. Numbers above 1 are those of documents.
        lengths: real tokens of each row, [B], in place of `valid`.
        padding_side: where the padding is that lengths leave.
        slot_positions: of a cache that is written in a ring, the position of each slot's token,
            [B, S], -1 in slots never written.
        past: tokens in the cache before this call.
        capacity: slots of a static cache; None where the cache grows.
        queries: T, where nothing else says it.
        heads: query heads of the model.
        pad_id: the tokenizer's padding id.
        eos_ids: the tokenizer's end ids.
        scores_dtype: name of the dtype of the attention scores.
        score_limit: no score is larger than this; 100 is the cap of QK-clip (arXiv 2507.20534).
        empty_row: the declared policy for a query that sees nothing.
        is_causal: a kernel is also told to be causal by a flag.
        align: the declared alignment of that flag.
        positional_bias: the array carries a positional bias (ALiBi and the like) besides the mask.
        first_position: position of a row's first real token.
        window: the configuration's window size, in keys.
        problems: what was wrong with a spec's own text.
        notes: how what can be read in several ways was read.
    """

    mask: np.ndarray | None = None
    spec: Mask | None = None
    intended: Mask | Literal["default"] | None = "default"
    use: Use | None = None
    layout: Layout | None = None
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    positions: np.ndarray | None = None
    segments: np.ndarray | None = None
    valid: np.ndarray | None = None
    lengths: np.ndarray | None = None
    padding_side: Side = "right"
    slot_positions: np.ndarray | None = None
    past: int | None = None
    capacity: int | None = None
    queries: int | None = None
    heads: int | None = None
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    scores_dtype: str | None = None
    score_limit: float = 100.0
    empty_row: str | None = None
    is_causal: bool = False
    align: str | None = None
    positional_bias: bool = False
    first_position: int = 0
    window: int | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = self._settle() + self._out_of_range()
        if (self.mask is None) == (self.spec is None):
            problems.append("give either a mask array or a spec")
        widths = set()
        for name in _FACTS:
            array = getattr(self, name)
            if array is not None and array.ndim != 2:
                problems.append(f"{argument(name)}: shape {array.shape}, expected [B, T] or [B, S]")
            elif array is not None:
                widths.add(array.shape[0])
        if len(widths) > 1:
            problems.append(f"rows: {sorted(widths)} in different arrays, expected one batch size")
        if self.mask is not None and not 2 <= self.mask.ndim <= 4:
            problems.append(f"mask: shape {self.mask.shape}, expected two to four axes")
        if self.mask is not None and self.mask.dtype.kind not in "biuf" + "V":
            problems.append(f"mask: dtype {self.mask.dtype}, expected bool or numbers")
        if self.spec is not None and not widths and self.queries is None:
            problems.append(
                f"a spec needs tokens: give {argument('ids')}, {argument('positions')}, "
                f"{argument('valid')}, or {argument('lengths')} and {argument('queries')}"
            )
        arrays = [*self.facts, *([] if self.mask is None else [self.mask])]
        problems += [f"shape {a.shape}: nothing in it" for a in arrays if not a.size]
        if not problems:
            problems += self._too_large() or self._misfits()
        if problems:
            raise InputError(join_problems("lint", problems))

    def _out_of_range(self) -> list[str]:
        """Return the numbers and names that cannot be."""
        least = {"heads": 1, "capacity": 1, "queries": 1, "past": 0}
        problems = [
            f"{argument(name, value)}: expected at least {bound}"
            for name, bound in least.items()
            if (value := getattr(self, name)) is not None and value < bound
        ]
        if not 0 < self.score_limit < np.inf:
            problems.append(f"{argument('score_limit', self.score_limit)}: expected one above 0")
        if self.scores_dtype is not None:
            try:
                dtypes.parse(self.scores_dtype, argument("scores_dtype"))
            except InputError as error:
                problems.append(error.marked)
        shape = () if self.mask is None else self.mask.shape
        if self.queries is not None and len(shape) > 2 and shape[-2] != self.queries:
            problems.append(
                f"{argument('queries', self.queries)}: the mask {shape} has {shape[-2]} queries"
            )
        return problems

    def _too_large(self) -> list[str]:
        """Return that memory does not hold the tables of queries and keys; none is made yet."""
        (batch, t, s), free = self.sizes, free_bytes()
        rows = batch if self.mask is None else max(1, self.mask.size // (t * s))
        needed = _BYTES_OF_A_CELL * rows * t * s
        if free is None or needed <= free:
            return []
        fits = max(1, math.isqrt(free // (_BYTES_OF_A_CELL * rows)))
        long = f"{argument('queries', t)}" if self.queries is not None else f"{t} queries"
        return [
            f"{long}: tables of {rows} x {t} x {s} = [B, T, S] take at least "
            f"{size_in_words(needed)}, and {size_in_words(free)} of this machine's memory are "
            f"free; give at most {fits} queries and keys"
        ]

    def _settle(self) -> list[str]:
        """Bring the facts into their one form; return what is wrong with them."""
        found = ReadFacts()
        if self.lengths is not None and self.valid is not None:
            found.problems.append(
                f"both {argument('valid')} and {argument('lengths')} are given; leave one out"
            )
        elif self.valid is not None:
            read_validity(found, self.valid, self.segments)
        elif self.lengths is not None:
            widths = [a.shape[-1] for a in (self.mask, *self.facts) if a is not None]
            width = min(widths, default=self.queries)
            read_lengths(found, self.lengths, width, self.padding_side)
            found.changes["lengths"] = None
        whole = self.mask is not None and self.mask.dtype.kind in "iu" and self.mask.size
        if whole and self.use != "additive" and self.mask.min() >= 0 and self.mask.max() > 1:  # type: ignore[union-attr]
            found.notes.append(
                f"the mask holds numbers up to {self.mask.max()}: all but 0 is read as seen"  # type: ignore[union-attr]
            )
        if self.mask is not None:
            known = [a for a in (*self.facts, self.lengths) if a is not None]
            rows = known[0].shape[0] if known else None
            read_axes(found, self.mask, self.layout, rows, self.heads)
        notes = tuple(dict.fromkeys((*self.notes, *found.notes)))
        for name, value in {**found.changes, "notes": notes}.items():
            object.__setattr__(self, name, value)
        self.__dict__.pop("facts", None)  # was looked at before it was settled
        return found.problems

    def _misfits(self) -> list[str]:
        """Return which arrays are about another number of tokens than the mask."""
        _, t, s = self.sizes
        fitting = {t, s, self.offset + t}
        return [
            f"{argument(name)}: {array.shape[1]} tokens a row, expected T = {t}, S = {s} or past +"
            f" T = {self.offset + t}"
            for name in _FACTS
            if (array := getattr(self, name)) is not None and array.shape[1] not in fitting
        ] + self._ring_misfits()

    def _ring_misfits(self) -> list[str]:
        """Return what is wrong with the positions of a ring's slots."""
        slots, (batch, _, s) = self.slot_positions, self.sizes
        if slots is None:
            return []
        if slots.dtype.kind not in "iu" or slots.shape not in ((batch, s), (1, s)):
            said = f"{slots.dtype} {slots.shape}, expected integers ({batch}, {s}) = [B, S]"
            return [f"{argument('slot_positions')}: {said}, -1 in slots never written"]
        return self.slots.misfits(queries=self.valid is None)

    # Sizes

    @cached_property
    def facts(self) -> list[np.ndarray]:
        """The arrays about tokens that are known."""
        named = (getattr(self, name) for name in _FACTS)
        return [array for array in named if array is not None]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """B, T, S: from the mask's last axes where it has four or three, else from the facts."""
        batch = self.facts[0].shape[0] if self.facts else 1
        if self.mask is not None and self.mask.ndim > 2:
            t, s = self.mask.shape[-2:]
            if not self.facts and (self.mask.ndim == 4 or self.layout == "bts"):
                batch = self.mask.shape[0]
        elif self.mask is not None:
            t, s = self.mask.shape
            if self.facts and t == batch:  # perhaps [B, S], which says nothing about T
                t = self._new_tokens(s)
        else:
            t = self._new_tokens(self.capacity)
            s = self.capacity or max((self.past or 0) + t, *self._widths)
        return batch, t, s

    @property
    def _widths(self) -> list[int]:
        return [array.shape[1] for array in self.facts] or [self.queries or 0]

    def _new_tokens(self, keys: int | None) -> int:
        """Return T where the mask does not say it: facts are about the new tokens, or about all."""
        narrowest, widest, past = min(self._widths), max(self._widths), self.past or 0
        if self.queries is not None:
            return self.queries
        if narrowest < widest or not past or widest <= past or keys not in (None, widest):
            return narrowest
        return narrowest if self.ids is not None and keys is None else widest - past

    @cached_property
    def offset(self) -> int:
        """Slot of the first query's own key: what is in the cache before it."""
        _, t, s = self.sizes
        return self.past if self.past is not None else max(s - t, 0)

    @cached_property
    def slots(self) -> Slots:
        """Where each token of a row lies among the keys."""
        _, t, s = self.sizes
        own = (
            self.positions if self.positions is not None and self.positions.shape[1] == t else None
        )
        return Slots(t, s, self.offset, self.past, self.capacity, self.slot_positions, own)

    # Facts about keys and queries

    def _spread(self, array: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Write [B, T] or [B, S] facts over [B, S] ones: those of the new tokens, or of all."""
        out = keys.copy()
        if self.slot_positions is not None and array.shape[1] != self.sizes[2]:
            own = np.broadcast_to(self.slots.own, (len(out), *self.sizes[1:]))
            row, query, slot = own.nonzero()
            out[row, slot] = array[row, query]
            return out
        written = min(self.sizes[2], self.offset + self.sizes[1])
        start = 0 if array.shape[1] >= written else self.offset
        width = max(min(array.shape[1], self.sizes[2] - start), 0)
        out[:, start : start + width] = array[:, :width]
        return out

    def _keys(self, array: np.ndarray | None, fill: Any) -> np.ndarray | None:
        if array is None:
            return None
        batch, _, s = self.sizes
        return self._spread(array, np.full((batch, s), fill, array.dtype))

    def of_queries(self, keys: np.ndarray) -> np.ndarray:
        """Return [B, T] of the queries' own keys, from [B, S] of all keys."""
        slots = self.slots.own.argmax(-1)
        slots[~self.slots.own.any(-1)] = self.sizes[2] - 1  # a mask too short for its own tokens
        return np.take_along_axis(keys, np.broadcast_to(slots, (len(keys), self.sizes[1])), axis=1)

    @cached_property
    def k_valid(self) -> np.ndarray:
        """[B, S] bool: False on padding. Known, or from the padding id where that is no end id."""
        batch, _, s = self.sizes
        known = self._keys(None if self.valid is None else self.valid.astype(bool), True)
        if known is not None:
            return known
        ids = self._keys(self.ids, -1)
        if ids is None or self.pad_id is None or self.pad_id in self.eos_ids:
            return np.ones((batch, s), bool)
        return ids != self.pad_id

    @cached_property
    def q_valid(self) -> np.ndarray:
        """[B, T] bool."""
        return self.of_queries(self.k_valid)

    @cached_property
    def k_segments(self) -> np.ndarray | None:
        """[B, S]."""
        return self._keys(self.segments, 0)

    @cached_property
    def counted_positions(self) -> np.ndarray:
        """[B, S]: the number of each valid key in its row, or in its segment."""
        valid = self.k_valid
        if self.k_segments is None:
            return np.maximum(valid.cumsum(1) - 1, 0) + self.first_position
        out = np.zeros(valid.shape, np.int64)
        for number in np.unique(self.k_segments):
            here = valid & (self.k_segments == number)
            out = np.where(here, here.cumsum(1) - 1, out)
        return out + self.first_position

    @cached_property
    def k_positions(self) -> np.ndarray:
        """[B, S]: given positions where there are any, else counted."""
        if self.slot_positions is not None:
            return np.broadcast_to(self.slot_positions, self.k_valid.shape)
        if self.positions is None:
            return self.counted_positions
        return self._spread(self.positions, self.counted_positions)

    @cached_property
    def q_positions(self) -> np.ndarray:
        """[B, T]."""
        return self.of_queries(self.k_positions)

    # What is seen, and what should be

    @cached_property
    def reading(self) -> MaskReading:
        """What the array's values mean."""
        return read(self.mask, self.use) if self.mask is not None else read(self._of_spec(), None)

    @cached_property
    def seen(self) -> np.ndarray | None:
        """[B, 1 or N, T, S] bool as meant, or None where the mask's shape cannot be read."""
        batch, t, s = self.sizes
        mask = self.reading.seen
        if mask.shape[-2:] != (t, s):
            return None
        if mask.ndim == 2:
            return None if self.is_padding_shaped else mask[None, None]
        if mask.ndim == 3:
            by_head = self.layout == "nts" or mask.shape[0] not in (1, batch)
            return mask[None] if by_head else mask[:, None]
        return mask if mask.shape[0] in (1, batch) else None

    @cached_property
    def is_padding_shaped(self) -> bool:
        """Whether a two-axis mask says one thing about each key of each row: [B, S], not [T, S].

        Where B equals T the shape says both; then the content decides: rows that differ from each
        other as the rows' padding does, and not as a triangle does.
        """
        if self.mask is None or self.mask.ndim != 2 or not self.facts:
            return False
        batch, t, s = self.sizes
        if self.mask.shape != (batch, s):
            return False
        if (t, s) != (batch, s):
            return True
        seen = self.reading.seen
        return bool((seen == self.k_valid).all()) or self.hides_one_id(seen)

    def hides_one_id(self, seen: np.ndarray) -> bool:
        """Whether the hidden keys, [B, S], are all tokens of one id and nothing else."""
        ids = self._keys(self.ids, -1)
        if ids is None or seen.shape != ids.shape or seen.all():
            return False
        hidden = np.unique(ids[~seen])
        return len(hidden) == 1 and bool(((ids == hidden[0]) == ~seen).all())

    @cached_property
    def expected(self) -> np.ndarray | None:
        """[B, 1, T, S] bool: what the intended rule shows."""
        return None if self.intended_rule is None else self.lowered(self.intended_rule)

    @cached_property
    def intended_rule(self) -> Mask | None:
        """The rule that should hold, defaults filled in."""
        if self.intended != "default":
            return self.intended
        rule = causal()
        if self.valid is not None or self.capacity is not None or not self.k_valid.all():
            rule = rule & padding()
        rule = rule & segments() if self.segments is not None else rule
        return rule & window(self.window) if self.window is not None and self.window > 0 else rule

    def differs(self, other: np.ndarray | None) -> bool:
        """Whether real queries of the mask see anything else than `other`, [B, 1, T, S], says."""
        if self.seen is None or other is None:
            return True
        wrong = (self.seen != other) & self.q_valid[:, None, :, None]
        return bool(wrong.any())

    def lowered(self, rule: Mask, *, by_index: bool = False) -> np.ndarray:
        """Return [B, 1, T, S] of another rule on these tokens; `by_index`: positions forgotten."""
        q, k = self.tokens
        if by_index:
            slots = np.broadcast_to(np.arange(self.sizes[2]), self.k_valid.shape)
            q, k = (
                dataclasses.replace(side, positions=positions)
                for side, positions in ((q, self.of_queries(slots)), (k, slots))
            )
        return np.asarray(rule.bind(q, k).block(xp=np))[:, None]

    @cached_property
    def tokens(self) -> tuple[Tokens, Tokens]:
        """Queries and keys as `jaxllama.masks` takes them."""
        k_segments = self.k_segments
        q_segments = None if k_segments is None else self.of_queries(k_segments)
        usable = self.k_valid & self.slots.written
        keys = Tokens(self.k_positions, usable, k_segments)
        return Tokens(self.q_positions, self.q_valid, q_segments), keys

    def _of_spec(self) -> np.ndarray:
        assert self.spec is not None
        return self.lowered(self.spec)

    def replace(self, **changes: Any) -> Case:
        """Return a copy with some facts changed."""
        return dataclasses.replace(self, **changes)
