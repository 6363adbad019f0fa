"""The rules there are: what may be seen, said without arrays.

Every cell is True = the query sees the key. Wherever positions are compared, they are compared
within one segment: the positions of two packed documents both start at 0 and say nothing about
each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jax import Array

from jaxllama.errors import InputError
from jaxllama.masks.algebra import Mask, pytree_spec
from jaxllama.masks.tokens import Cells, Tokens

Align = Literal["position", "top_left", "bottom_right"]
_ALIGNMENTS = ("position", "top_left", "bottom_right")


@pytree_spec
@dataclass(frozen=True)
class Causal(Mask):
    """See `causal`."""

    align: Align

    def cells(self, cells: Cells) -> Any:
        if self.align == "position":
            return (cells.k_position <= cells.q_position) & cells.comparable()
        shift = cells.k_size - cells.q_size if self.align == "bottom_right" else 0
        return cells.k_index <= cells.q_index + shift

    def __str__(self) -> str:
        return "causal()" if self.align == "position" else f'causal(align="{self.align}")'


@pytree_spec
@dataclass(frozen=True)
class Padding(Mask):
    """See `padding`."""

    def cells(self, cells: Cells) -> Any:
        return cells.k_valid

    def __str__(self) -> str:
        return "padding()"


@pytree_spec
@dataclass(frozen=True)
class Segments(Mask):
    """See `segments`."""

    def cells(self, cells: Cells) -> Any:
        return cells.q_segment == cells.k_segment

    def check(self, q: Tokens, k: Tokens) -> list[str]:
        if q.segments is None and k.segments is None:
            return ["segments(): neither queries nor keys carry any; give Tokens(..., segments=)"]
        return []

    def __str__(self) -> str:
        return "segments()"


@pytree_spec
@dataclass(frozen=True)
class Window(Mask):
    """See `window`."""

    window_keys: int

    def cells(self, cells: Cells) -> Any:
        return (cells.k_position > cells.q_position - self.window_keys) & cells.comparable()

    def __str__(self) -> str:
        return f"window({self.window_keys})"


@pytree_spec
@dataclass(frozen=True)
class Prefix(Mask):
    """See `prefix`."""

    length: int

    def cells(self, cells: Cells) -> Any:
        return (cells.k_position < self.length) & cells.comparable()

    def __str__(self) -> str:
        return f"prefix({self.length})"


@pytree_spec
@dataclass(frozen=True)
class Chunked(Mask):
    """See `chunked`."""

    size: int

    def cells(self, cells: Cells) -> Any:
        return (cells.k_position // self.size == cells.q_position // self.size) & cells.comparable()

    def __str__(self) -> str:
        return f"chunked({self.size})"


@pytree_spec
@dataclass(frozen=True)
class Index(Mask):
    """See `index`."""

    keys: tuple[int, ...]

    def cells(self, cells: Cells) -> Any:
        seen = cells.k_index < 0
        for key in self.keys:
            seen = seen | (cells.k_index == key)
        return seen

    def check(self, q: Tokens, k: Tokens) -> list[str]:
        size = k.shape[1]
        return [f"index({i}): only keys 0 to {size - 1} exist" for i in self.keys if i >= size]

    def __str__(self) -> str:
        return f"index({', '.join(map(str, self.keys))})"


@pytree_spec
@dataclass(frozen=True, eq=False)
class Explicit(Mask):
    """See `explicit`."""

    array: Any
    _arrays = ("array",)

    def cells(self, cells: Cells) -> Any:
        array = cells.xp.asarray(self.array)
        array = array if array.ndim == 3 else array[None]
        if cells.shape[1:] == (cells.q_size, cells.k_size):
            return array
        return array[:, cells.q_index[0, :, 0]][:, :, cells.k_index[0, 0]]

    def check(self, q: Tokens, k: Tokens) -> list[str]:
        (batch, t), (_, s) = q.shape, k.shape
        shape = np.shape(self.array)
        if shape in ((t, s), (1, t, s), (batch, t, s)):
            return []
        wanted = f"[T, S] = ({t}, {s}) or [B, T, S] = ({batch}, {t}, {s})"
        return [f"explicit(...): shape {shape}, expected {wanted}"]

    def __str__(self) -> str:
        return f"explicit({'x'.join(map(str, np.shape(self.array)))})"


@pytree_spec
@dataclass(frozen=True)
class Predicate(Mask):
    """See `predicate`."""

    fn: Callable[[Cells], Any]

    def cells(self, cells: Cells) -> Any:
        seen = cells.xp.asarray(self.fn(cells))
        if seen.dtype != np.bool_ or seen.ndim != 3:
            raise InputError(
                f"{self}: returned {seen.dtype} of rank {seen.ndim}, expected bool of rank 3 that"
                f" broadcasts to {cells.shape}; return a comparison such as cells.k_position >= 4"
            )
        return seen

    def __str__(self) -> str:
        return f"predicate({getattr(self.fn, '__name__', type(self.fn).__name__)})"


def causal(align: Align = "position") -> Mask:
    """Return "no query sees a key after itself".

    Args:
        align: "position" compares explicit positions, within one segment; right with caches,
            padding and packing. "top_left" and "bottom_right" compare array indices: query i sees
            keys j <= i, or j <= i + S - T. They differ whenever T != S, and are here to say what
            other code does.

    Raises:
        InputError: unknown alignment.
    """
    if align not in _ALIGNMENTS:
        raise InputError(f"causal(align={align!r}): expected one of {', '.join(_ALIGNMENTS)}")
    return Causal(align)


def padding() -> Mask:
    """Return "no query sees a key that is not valid": padding, or a cache slot not yet written.

    Acts on the key axis alone: a pad's own row is not touched.
    """
    return Padding()


def segments() -> Mask:
    """Return "a query sees keys of its own segment alone" (packed documents)."""
    return Segments()


def window(window_keys: int) -> Mask:
    """Return "no query sees further back than its last `window_keys` keys, itself included".

    Positions p with q - window_keys < p; the future is not its business: combine with `causal()`.

    Args:
        window_keys: number of keys, in tokens, the query's own one counted; at least 1.

    Raises:
        InputError: fewer than 1.

    Source:
        Mistral 7B, arXiv 2310.06825, for the idea; the count is that of transformers'
        `sliding_window`.
    """
    return Window(_at_least("window(window_keys", window_keys, 1, "1 is the query itself"))


def prefix(length: int) -> Mask:
    """Return "every query sees the first `length` positions of its segment".

    `causal() | prefix(n)` is a prefix LM.
    """
    return Prefix(_at_least("prefix(length", length, 0, "0 shows nothing"))


def chunked(size: int) -> Mask:
    """Return "a query sees keys of its own chunk alone": `size` positions, from position 0 on."""
    return Chunked(_at_least("chunked(size", size, 1, "a chunk holds at least its query"))


def index(*keys: int) -> Mask:
    """Return "every query sees the keys at these array indices"; `~index(0)` hides the first."""
    why = "count from the start of the array"
    return Index(tuple(_at_least("index(key", key, 0, why) for key in keys))


def explicit(array: Array | np.ndarray) -> Mask:
    """Return a rule that is given cell by cell.

    Args:
        array: bool, [T, S] or [B, T, S], True = seen. Numbers are refused: 0 means "hidden" in a
            0/1 mask and "seen" in an additive one, and -inf casts to True.

    Raises:
        InputError: not bool, or of another rank.
    """
    dtype = getattr(array, "dtype", None)
    problem = None
    if dtype != np.bool_:
        problem = (
            f"dtype {dtype or type(array).__name__}, expected bool with True = seen; say what it"
            " means: `bias == 0` for an additive 0/-inf bias, `array != 0` for 0/1"
        )
    elif len(np.shape(array)) not in (2, 3):
        problem = (
            f"shape {np.shape(array)}, expected [T, S] or [B, T, S];"
            " of a [B, 1, T, S] mask, give mask[:, 0]"
        )
    if problem:
        raise InputError(f"explicit(array): {problem}")
    return Explicit(array)


def predicate(fn: Callable[[Cells], Any]) -> Mask:
    """Return a rule of your own: `fn(cells)` gives a bool array that broadcasts to [B, T, S].

    Example:
        >>> import numpy as np
        >>> even = predicate(lambda cells: cells.k_position % 2 == 0)
        >>> tokens = Tokens(np.arange(4)[None], np.ones((1, 4), bool))
        >>> (causal() & even).bind(tokens, tokens).to_bool()[0, 3].tolist()
        [True, False, True, False]
    """
    return Predicate(fn)


def _at_least(what: str, value: object, least: int, why: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{what}={value!r}): expected an integer of at least {least}; {why}")
    return int(value)
