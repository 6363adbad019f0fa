"""What callers say of tokens and axes, in the one form that rules read.

The same thing is said in several ways: padding as 0 and 1, as lengths, or as the numbers of packed
documents; heads as an axis of their own, or laid out with the rows. What is chosen is noted.

Shape letters: B batch, N heads, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxllama.errors import argument

Layout = Literal["bts", "nts", "bnts"]
LAYOUTS = {
    "bts": "[B, T, S]",
    "nts": "[N, T, S]",
    "bnts": "[B*N, T, S], the heads of a row side by side",
}
Side = Literal["right", "left"]


@dataclass
class ReadFacts:
    """What was made of the facts, and what is wrong with them.

    Attributes:
        changes: fields in their one form.
        notes: how something that can be read in several ways was read.
        problems: what cannot be read at all.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_validity(found: ReadFacts, valid: np.ndarray, segments: np.ndarray | None) -> None:
    """Read which tokens are real, and of which document where numbers above 1 tell.

    Packers write 1, 2, 3 for the documents of a row and 0 for padding (transformers and TRL among
    them); cast to bool, the numbers are lost, and with them that documents may not see each other.
    """
    if valid.dtype == np.bool_:
        return
    odd = valid[~np.isin(valid, (0, 1))]
    if not odd.size:
        found.changes["valid"] = valid.astype(bool)
        return
    whole = valid.dtype.kind in "iu" or bool((np.isfinite(odd) & (odd == np.rint(odd))).all())
    if not whole or (odd < 0).any():
        found.problems.append(
            f"{argument('valid')}: holds {odd.flat[0]}, expected 1 on real tokens and 0 on padding,"
            " or numbers of documents from 1 on"
        )
        return
    numbers, real = valid.astype(np.int64), valid > 0
    found.changes["valid"] = real
    if segments is None:
        found.changes["segments"] = numbers
        found.notes.append(
            f"validity holds numbers up to {numbers.max()}: read as documents, 0 as padding"
        )
    elif segments.shape != numbers.shape or not _same_partition(numbers, segments, real):
        found.problems.append(
            f"{argument('valid')}: holds numbers up to {numbers.max()}, which are other documents"
            f" than those of {argument('segments')}; give it as 0 and 1, or leave these out"
        )


def _same_partition(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> bool:
    same = [a[:, :, None] == a[:, None, :] for a in (one, other)]
    return bool(((same[0] == same[1]) | ~(where[:, :, None] & where[:, None, :])).all())


def read_lengths(found: ReadFacts, lengths: np.ndarray, width: int | None, side: Side) -> None:
    """Read how many tokens of each row are real.

    Args:
        found: takes `valid`, [B, width].
        lengths: [B].
        width: tokens of a row, padding included; None where nothing says it.
        side: where the padding is.
    """
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        found.problems.append(
            f"{argument('lengths')}: {lengths.dtype} {lengths.shape}, expected one integer a row,"
            " [B]"
        )
    elif width is None:
        found.problems.append(
            f"{argument('lengths')}: nothing says how long a row is; give a mask or"
            f" {argument('queries')}"
        )
    elif (lengths < 0).any() or (lengths > width).any():
        row = int(np.argmax((lengths < 0) | (lengths > width)))
        found.problems.append(
            f"{argument('lengths')}: row {row} is said to have {lengths[row]} real tokens of"
            f" {width}; expected 0 to {width}"
        )
    else:
        column = np.arange(width)[None, :]
        rows = lengths[:, None]
        found.changes["valid"] = column < rows if side == "right" else column >= width - rows


def read_axes(
    found: ReadFacts, mask: np.ndarray, layout: Layout | None, rows: int | None, heads: int | None
) -> None:
    """Give a mask of three axes with rows and heads in one of them an axis for each.

    Args:
        found: takes `mask`, [B, N, T, S], and `layout`.
        mask: as given.
        layout: what its first axis is declared to be.
        rows: B, where it is known.
        heads: N, likewise.
    """
    if mask.ndim != 3:
        return
    first, (t, s) = mask.shape[0], mask.shape[1:]
    fits = {1, rows or 1, heads or 1}
    if layout is None and rows and heads and first == rows * heads and first not in fits:
        layout = "bnts"
        found.notes.append(f"{first} = {rows} rows x {heads} heads: read as {LAYOUTS[layout]}")
    if layout is None and first not in fits and (heads or (rows or 1) > 1):
        known = [(rows, "rows"), (heads, "heads")]
        said = " or ".join(f"{number} {what}" for number, what in known if number)
        readings = ", ".join(f"{name} {meaning}" for name, meaning in LAYOUTS.items())
        found.problems.append(
            f"mask: shape {mask.shape}: {first} is not 1, {said} or their product; say what the"
            f" first axis is by {argument('layout')} ({readings}), and {argument('heads')}"
        )
    elif layout is not None and (wanted := _wanted(layout, rows, heads)) and first not in wanted:
        said = " or ".join(map(str, sorted(wanted)))
        found.problems.append(
            f"mask: shape {mask.shape} declared as {layout}, {LAYOUTS[layout]}: first axis {first},"
            f" expected {said} ({rows or 'unknown'} rows, {heads or 'unknown'} heads)"
        )
    elif layout == "bnts":
        if not rows and not heads:
            found.problems.append(
                f"mask: shape {mask.shape} declared as bnts, {LAYOUTS[layout]}: give"
                f" {argument('heads')}"
            )
        elif first % (heads or rows or 1):
            found.problems.append(
                f"mask: shape {mask.shape} declared as bnts: {first} is no multiple of"
                f" {heads or rows} {'heads' if heads else 'rows'}"
            )
        else:
            batch = first // heads if heads else int(rows or 1)
            found.changes.update(mask=mask.reshape(batch, -1, t, s), layout=layout)


def _wanted(layout: Layout, rows: int | None, heads: int | None) -> set[int]:
    """Return what the first axis may be; nothing where it is not known."""
    if layout == "bts":
        return {1, rows} if rows else set()
    if layout == "nts":
        return {1, heads} if heads else set()
    return {rows * heads} if rows and heads else set()
