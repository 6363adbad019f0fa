"""Masks as text: a picture of who sees whom, and the reason for one cell."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxllama.command_line.notebook import PICTURE, themed
from jaxllama.concrete import is_concrete
from jaxllama.errors import InputError
from jaxllama.masks.algebra import And, Mask, Not, Or
from jaxllama.masks.tokens import Cells

if TYPE_CHECKING:
    from jaxllama.masks.bound import BoundMask

SEEN, PARTLY, HIDDEN, EMPTY = "#", "+", ".", "!"
_SEEN_COLOUR, _PARTLY_COLOUR, _EMPTY_COLOUR = "#1f639f", "#8db9dd", "#d55e00"
_WIDTH, _HEIGHT = 64, 32  # characters of one picture
_NARROWEST = 24  # columns of a line, with what stands before a query
_ROWS = 4  # rows of the batch that are drawn
_BRIEF = 5  # queries of a picture that a `print` shows whole
# Up to here every cell is looked at (0.3 s on two cores); beyond, five queries and keys of a block.
_EXACT_CELLS = 1 << 24
_LEGEND = f"{SEEN} seen  {PARTLY} partly  {HIDDEN} hidden  {EMPTY} a query that sees nothing"


def draw(bound: BoundMask, width: int | None = None) -> str:
    """Return the mask drawn in text, see `BoundMask.draw`."""
    label = _label(bound) + 2
    columns = _WIDTH if width is None else min(_WIDTH, max(width, _NARROWEST) - label)
    return "\n".join(_drawn(bound, columns, _HEIGHT, _ROWS))


def in_brief(bound: BoundMask) -> str:
    """Return the mask drawn in under 12 lines: small ones whole, of others one row in blocks."""
    (batch, t), s = bound.q.shape, bound.k.shape[1]
    if batch == 1 and t <= _BRIEF:
        return "\n".join(_drawn(bound, _WIDTH, _BRIEF, 1))
    padded = is_concrete(bound) and not np.asarray(bound.k.valid)[0].all()
    height = _BRIEF + 1 - (s <= _WIDTH) - padded
    lines = [line for line in _drawn(bound, _WIDTH, height, 1) if line]
    if len(lines) == 1:  # no values to draw
        return lines[0]
    more = f"{lines.pop()[1:-1]}; " if batch > 1 else ""
    return "\n".join([*lines, f"({more}mask.draw() draws more)"])


def _drawn(bound: BoundMask, width: int, height: int, most_rows: int) -> list[str]:
    """Return a heading and pictures of so many rows, of so many characters each."""
    if not is_concrete(bound):
        return [f"{bound!r} (being traced: no values to draw)"]
    (batch, t), s = bound.q.shape, bound.k.shape[1]
    queries, keys = _blocks(t, height), _blocks(s, width)
    exact = batch * t * s <= _EXACT_CELLS
    lines = [_heading(bound), _LEGEND]
    if len(queries) < t or len(keys) < s:
        how = "every cell" if exact else "5 x 5 cells of each"
        tall, wide = _largest(queries), _largest(keys)
        lines.append(f"blocks of up to {tall} queries x {wide} keys; {how} looked at")
    asked_q = queries if exact else [_sampled(block) for block in queries]
    asked_k = keys if exact else [_sampled(block) for block in keys]
    some, every, live = _summaries(bound, asked_q, asked_k)
    for row in range(min(batch, most_rows)):
        lines += ["", *_picture(bound, row, queries, keys, some[row], every[row], live[row])]
    if batch > most_rows:
        lines += ["", f"({batch - most_rows} more row{'s' * (batch - most_rows > 1)})"]
    return lines


def _heading(bound: BoundMask) -> str:
    (batch, t), s = bound.q.shape, bound.k.shape[1]
    return f"{bound.spec}   {batch} x {t} queries x {s} keys   empty row: {bound.empty_row}"


def draw_html(bound: BoundMask) -> str:
    """Return the same picture as an SVG in HTML, a small square a cell or block."""
    if not is_concrete(bound):
        return f"<pre>{escape(draw(bound))}</pre>"
    (batch, t), s = bound.q.shape, bound.k.shape[1]
    queries, keys = _blocks(t, _WIDTH), _blocks(s, _WIDTH)
    exact = batch * t * s <= _EXACT_CELLS
    asked_q = queries if exact else [_sampled(block) for block in queries]
    asked_k = keys if exact else [_sampled(block) for block in keys]
    some, every, live = _summaries(bound, asked_q, asked_k)
    side = max(2, min(14, 288 // max(len(queries), len(keys))))
    width, height = side * len(keys), side * len(queries)
    parts = [f"<p style='margin:0'>{escape(_heading(bound))}</p>"]
    for row in range(min(batch, _ROWS)):
        cells = {
            _SEEN_COLOUR: every[row],
            _PARTLY_COLOUR: some[row] & ~every[row],
            _EMPTY_COLOUR: np.broadcast_to(~live[row][:, None], some[row].shape) & ~some[row],
        }
        paths = "".join(
            f"<path fill='{colour}' d='{_squares(which, side)}'/>"
            for colour, which in cells.items()
            if which.any()
        )
        label = f"row {row}: queries downwards, keys to the right"
        parts.append(
            f"<figure style='display:inline-block;margin:6px 12px 0 0'><figcaption>{label}"
            f"</figcaption><svg class='{PICTURE}' role='img' aria-label='{label}' "
            f"width='{width}' height='{height}' style='background:#fff;border:1px solid #8a949e'>"
            f"{paths}</svg></figure>"
        )
    legend = "blue seen, paler blue partly, orange a query that sees nothing"
    more = f"; {batch - _ROWS} more rows" if batch > _ROWS else ""
    return themed("".join([*parts, f"<p style='margin:0'><small>{legend}{more}</small></p>"]))


def _squares(which: np.ndarray, side: int) -> str:
    """Return an SVG path around the cells that are set, a rectangle a run of them in a row."""
    found = []
    for y, line in enumerate(which):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        found += [
            f"M{a * side} {y * side}h{(b - a) * side}v{side}h{(a - b) * side}z"
            for a, b in edges.reshape(-1, 2)
        ]
    return "".join(found)


def _label(bound: BoundMask) -> int:
    """Return the width of what stands before a query."""
    return max(len(f"q {bound.q.shape[1] - 1}"), len("valid"))


def _blocks(size: int, most: int) -> list[np.ndarray]:
    return list(np.array_split(np.arange(size), min(most, max(size, 1))))


def _largest(blocks: list[np.ndarray]) -> int:
    return max(len(block) for block in blocks)


def _sampled(block: np.ndarray) -> np.ndarray:
    return np.unique(block[np.linspace(0, len(block) - 1, 5).astype(int)])


def _summaries(
    bound: BoundMask, queries: list[np.ndarray], keys: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return per block whether any cell is seen, whether all are, and whether all queries live."""
    all_keys = np.concatenate(keys)
    key_starts = np.cumsum([0] + [len(block) for block in keys[:-1]])
    complete = len(all_keys) == bound.k.shape[1]
    some, every, live = [], [], []
    for block in queries:
        seen = bound.block(block, all_keys, xp=np)
        some.append(np.logical_or.reduceat(seen.any(1), key_starts, axis=-1))
        every.append(np.logical_and.reduceat(seen.all(1), key_starts, axis=-1))
        rows = seen if complete else bound.block(block, xp=np)
        live.append(rows.any(-1).all(-1))
    return np.stack(some, 1), np.stack(every, 1), np.stack(live, 1)


def _picture(
    bound: BoundMask,
    row: int,
    queries: list[np.ndarray],
    keys: list[np.ndarray],
    some: np.ndarray,
    every: np.ndarray,
    live: np.ndarray,
) -> list[str]:
    label = _label(bound)
    q_valid, k_valid = np.asarray(bound.q.valid)[row], np.asarray(bound.k.valid)[row]
    lines = [f"row {row}"]
    if len(keys) == bound.k.shape[1]:
        lines.append(" " * (label + 2) + "".join(str(block[0] % 10) for block in keys))
    if not k_valid.all():
        marks = ("v" if k_valid[block].any() else "-" for block in keys)
        lines.append("valid".rjust(label) + "  " + "".join(marks))
    for i, block in enumerate(queries):
        cells = [
            SEEN if a else PARTLY if b else HIDDEN for a, b in zip(every[i], some[i], strict=True)
        ]
        if not live[i]:
            cells = [EMPTY if cell == HIDDEN else cell for cell in cells]
        note = "" if q_valid[block].any() else "  not valid"
        lines.append(f"q {block[0]}".rjust(label) + "  " + "".join(cells) + note)
    return lines


def explain(bound: BoundMask, q: int, k: int, row: int) -> str:
    """Return in words which parts of the rule show or hide one cell; see `BoundMask.explain`."""
    if not is_concrete(bound, q, k, row):
        raise InputError(
            f"explain: {bound!r} is being traced, there are no values to look at; ask outside of"
            " jit, vmap and grad"
        )
    (batch, t), s = bound.q.shape, bound.k.shape[1]
    problems = [
        f"{name} {value}: expected 0 to {size - 1}"
        for name, value, size in (("row", row, batch), ("query", q, t), ("key", k, s))
        if not 0 <= value < size
    ]
    if problems:
        raise InputError(f"explain: no such cell: {'; '.join(problems)}")
    with jax.ensure_compile_time_eval():  # a predicate may use jax.numpy
        return _reasons(bound, q, k, row)


def _reasons(bound: BoundMask, q: int, k: int, row: int) -> str:
    cell = Cells.of(bound.q, bound.k, [q], [k], xp=np).row(row)
    shown = bool(bound.block([q], [k], xp=np)[row, 0, 0])
    by_rule = _value(bound.spec, cell)
    if shown != by_rule:
        reason = 'empty_row="self": the rule shows this query nothing, so it sees its own key'
    else:
        decisive = list(dict.fromkeys(map(str, _decisive(bound.spec, cell))))
        reason = ("shown" if shown else "hidden") + f" by {', '.join(decisive)}"
    head = f"row {row}, query {q} ({_side(cell, 'q')}), key {k} ({_side(cell, 'k')}): {reason}"
    return "\n".join([head, *_tree(bound.spec, cell, 1)])


def _value(spec: Mask, cell: Cells) -> bool:
    return bool(np.asarray(spec.cells(cell)).reshape(-1)[0])


def _decisive(spec: Mask, cell: Cells) -> list[Mask]:
    """Return the rules without parts that make the cell what it is."""
    value, parts = _value(spec, cell), spec.parts()
    if not parts:
        return [spec]
    if isinstance(spec, Not):
        return _decisive(parts[0], cell)
    # One hidden part hides an AND and one shown part shows an OR; else all of them had to agree.
    one_decides = (isinstance(spec, And) and not value) or (isinstance(spec, Or) and value)
    chosen = [p for p in parts if _value(p, cell) == value] if one_decides else parts
    return [rule for part in chosen for rule in _decisive(part, cell)]


def _tree(spec: Mask, cell: Cells, depth: int) -> list[str]:
    line = f"{'  ' * depth}{spec}: {'shows' if _value(spec, cell) else 'hides'}"
    parts = _chain(spec, type(spec)) if spec.parts() and not isinstance(spec, Not) else spec.parts()
    return [line, *(text for part in parts for text in _tree(part, cell, depth + 1))]


def _chain(spec: Mask, kind: type[Mask]) -> list[Mask]:
    """Return a & b & c as three parts, not as two of which one has two."""
    if not isinstance(spec, kind):
        return [spec]
    return [rule for part in spec.parts() for rule in _chain(part, kind)]


def _side(cell: Cells, side: str) -> str:
    def value(name: str) -> Any:
        array = getattr(cell, f"{side}_{name}")
        return None if array is None else np.asarray(array).item()

    segment = value("segment")
    facts = [f"position {value('position')}"]
    facts += [] if segment is None else [f"segment {segment}"]
    facts += [] if value("valid") else ["not valid"]
    return ", ".join(facts)
