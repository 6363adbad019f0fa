"""M08: a mask whose axes are read as something else."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import LEFT_PADDED, T, additive, tril

RULE = Rule(
    id="M08",
    name="wrong rank or axis",
    severity="error",
    checks=(
        "[B, S] and [B, T, S] masks where the receiver broadcasts from the right, axes that are"
        " neither the batch's nor the heads', rows and heads in one axis in the wrong order, and"
        " padding that hides the padding's rows in place of its columns."
    ),
    why=(
        "Broadcasting never asks. Added to scores of [B, N, T, S], a [B, S] mask lands on the query"
        " axis as soon as B equals T, and fails only when it does not;"
        " jax.nn.dot_product_attention reads a mask of three axes as [N, T, S]."
    ),
    example="scores + padding_bias  # [B, S]; jax.nn.dot_product_attention(..., mask=seen_BTS)",
    remedy="name every axis: [B, 1, T, S], or [B, 1, 1, S] for padding alone",
    sources=("hyunwoongko/transformer#40",),
    needs=("array",),
    consequences=("M05", "M07", "M09", "M11", "C01", "S01", "S02", "W01"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on ranks and axes that broadcasting reads otherwise."""
    assert case.mask is not None
    batch, t, s = case.sizes
    shape = case.mask.shape
    if case.is_padding_shaped:
        silent = f"silently, since B = T = {batch}" if batch == t else "which fails here"
        yield RULE.finding(
            f"a [B, S] mask is broadcast as [T, S], {silent}",
            f"shape {shape}",
            f"({batch}, 1, 1, {s})",
        )
    elif case.mask.ndim == 3 and case.layout is None and shape[0] == batch > 1:
        yield RULE.finding(
            "a [B, T, S] mask is read as [N, T, S]", f"shape {shape}", f"({batch}, 1, {t}, {s})"
        )
    elif case.mask.ndim == 4 and (problem := _axes(case)):
        yield RULE.finding("an axis is neither 1 nor what it stands for", f"shape {shape}", problem)
    elif (heads_first := _heads_first(case)) is not None:
        yield RULE.finding(
            "rows of the batch are repeated as a whole, where each row is to be repeated for its"
            " heads",
            "row 0 of all heads, then row 1 (tile)",
            "all heads of row 0, then those of row 1 (repeat, repeat_interleave)",
            where=places(heads_first),
        )
    elif (rows := _padding_on_queries(case)) is not None and rows.any():
        yield RULE.finding(
            "padding hides its own rows, and its columns are seen",
            "the padding's query hidden and its key seen",
            "the key hidden from every real query",
            where=places(rows, ("row", "key")),
        )


def _axes(case: Case) -> str | None:
    """Return what a four-axis mask's shape should be, where it is not."""
    assert case.mask is not None
    batch, t, s = case.sizes
    rows, heads = case.mask.shape[:2]
    known_heads = case.heads if case.heads is not None else heads
    if rows in (1, batch) and heads in (1, known_heads):
        return None
    return f"({batch} or 1, {known_heads if case.heads else 'N'} or 1, {t}, {s})"


def _heads_first(case: Case) -> np.ndarray | None:
    """Return the cells that are wrong where [N*B, T, S] was given for [B*N, T, S], else None."""
    if case.layout != "bnts" or case.seen is None or case.expected is None:
        return None
    rows, heads = case.seen.shape[:2]
    if min(rows, heads) == 1 or not case.differs(case.expected):
        return None
    tiled = case.seen.reshape(heads, rows, *case.seen.shape[2:]).swapaxes(0, 1)
    real = case.q_valid[:, None, :, None]
    if ((tiled != case.expected) & real).any():
        return None
    return (case.seen != case.expected) & real


def _padding_on_queries(case: Case) -> np.ndarray | None:
    """Return [B, T]: padding whose own row is empty while all later real queries see it."""
    if case.seen is None or case.sizes[1] != case.sizes[2]:
        return None
    padding = ~case.k_valid
    row_empty = ~case.seen.any((1, 3))
    later = (case.q_valid[:, :, None] & case.slots.after.swapaxes(1, 2))[:, None]  # [B, 1, T, S]
    seen_by_real = (case.seen | ~later).all((1, 2)) & later.any((1, 2))
    return padding & row_empty & seen_by_real


def mutant() -> Case:
    """A padding bias [B, S] for a batch of as many rows as tokens."""
    valid = np.tile(LEFT_PADDED, (3, 1))[:T]
    return Case(mask=additive(valid, -np.inf), valid=valid, empty_row="zero")


def twin() -> Case:
    """A triangle [T, S] of the same shape, for a batch of as many rows as tokens."""
    return Case(mask=additive(tril(), -np.inf), ids=np.arange(T * T).reshape(T, T))
