"""Positions that a subject goes by, and the reference that goes by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.solve import offset_and_stride
from parity.inputs import Inputs


def observed(e: Evidence) -> np.ndarray | None:
    """Return the positions [B T] that the subject shows, None if they are right or not shown."""
    seen = e.observed_positions
    if seen is None or np.array_equal(seen[e.inputs.valid], e.inputs.positions[e.inputs.valid]):
        return None
    return np.where(e.inputs.valid, seen, e.inputs.positions)


PositionsRule = Callable[[Inputs, Sequence[int] | None], np.ndarray]


def moved(e: Evidence, cause: str, said: str, rule: PositionsRule | None = None) -> Hypothesis:
    """Return a hypothesis whose reference has the subject's positions.

    Args:
        e: the evidence.
        cause: whose it is.
        said: how they differ.
        rule: gives the positions [B T] of any scenario, if one does.
    """
    seen = observed(e)
    assert seen is not None
    first = tuple(np.argwhere((seen != e.inputs.positions) & e.inputs.valid)[0])
    return Hypothesis(
        cause,
        said,
        positions=seen,
        rule=partial(_elsewhere, rule) if rule else None,
        effective=f"position {seen[first]} at row {first[0]}, token {first[1]}",
        configured=f"{e.inputs.positions[first]}",
    )


def _elsewhere(rule: PositionsRule, inputs: Inputs, chunks: Sequence[int] | None) -> Inputs:
    made = rule(inputs, chunks)
    positions = np.where(inputs.valid, made, inputs.positions).astype(inputs.positions.dtype)
    return replace(inputs, positions=positions)


def in_words(e: Evidence, seen: np.ndarray) -> Iterator[tuple[str, PositionsRule | None]]:
    """Yield how positions may differ, in words, with the rules that give them; other scenarios
    tell which.
    """
    valid = e.inputs.valid
    got, right = seen[valid], e.inputs.positions[valid]
    wrong = got != right
    rules = list(_rules(e.inputs, got, right, wrong))
    in_some = [words for calls in _SOME_CALLS for words in _in_calls(rules, *calls)]
    for tried in (rules, in_some if e.chunks else []):
        found = [
            (said, rule)
            for said, rule in tried
            if np.array_equal(rule(e.inputs, e.chunks)[valid], got)
        ]
        yield from found
        if found:
            return
    offset = np.unique(got[wrong] - right[wrong])
    by_call = _from_each_call(e.inputs, e.chunks)
    if not got[wrong].any():
        yield "positions 0", None
    elif len(offset) == 1:
        yield f"positions shifted by {offset[0]:+d}", None
    elif len(np.unique(got[wrong])) == 1:
        yield f"positions held at {got[wrong][0]}", None
    elif e.chunks is not None and np.array_equal(seen[:, e.columns], by_call[:, e.columns]):
        yield "positions start anew with each call", _from_each_call
    else:
        yield "other positions", None


# Calls that may go by positions of their own, told by their numbers and sizes.
_SOME_CALLS: tuple[tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]], ...] = (
    ("in calls after the first alone", lambda number, size: number > 0),
    ("in calls of one column alone", lambda number, size: size == 1),
    ("in the first call alone", lambda number, size: number == 0),
)


def _in_calls(
    rules: Sequence[tuple[str, PositionsRule]],
    where: str,
    chosen: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Iterator[tuple[str, PositionsRule]]:
    """Yield rules as they are where only some calls follow them."""

    def within(rule: PositionsRule, inputs: Inputs, chunks: Sequence[int] | None) -> np.ndarray:
        sizes = np.array([inputs.tokens.shape[1]] if chunks is None else chunks)
        columns = np.repeat(chosen(np.arange(len(sizes)), sizes), sizes)
        return np.where(columns, rule(inputs, chunks), inputs.positions)

    for said, rule in rules:
        yield f"{said} {where}", partial(within, rule)


def _rules(
    inputs: Inputs, got: np.ndarray, right: np.ndarray, wrong: np.ndarray
) -> Iterator[tuple[str, PositionsRule]]:
    """Yield rules that positions may follow, the simplest first, with the words for them."""
    at, off = int(got[wrong][0]), int((got - right)[wrong][0])
    yield "positions 0", lambda i, _: np.zeros_like(i.positions)
    yield f"positions shifted by {off:+d}", lambda i, _: i.positions + off
    yield f"positions held at {at}", lambda i, _: np.minimum(i.positions, at)
    yield "positions halved", lambda i, _: i.positions // 2
    line = offset_and_stride(got, right)
    if line is not None:
        a, b = line
        yield (
            f"positions {a} + {b:g} times the right ones",
            lambda i, _: a + np.rint(b * i.positions),
        )
    yield "positions counted in columns, pads included", lambda i, _: _columns(i)
    yield "positions start anew with each call", _from_each_call
    yield "positions held below the call's length", _below_length
    around = int(np.gcd.reduce((right - got)[wrong]))
    if around > 1:
        yield f"positions start anew after {around}", lambda i, _: i.positions % around
    for row in dict.fromkeys((0, len(inputs.tokens) - 1)):
        where = "the last row" if row else "row 0"
        yield (
            f"{where}'s positions in every row",
            lambda i, _, row=row: np.broadcast_to(  # type: ignore[misc]
                i.positions[min(row, len(i.positions) - 1)], i.positions.shape
            ),
        )


def _columns(inputs: Inputs) -> np.ndarray:
    return np.broadcast_to(np.arange(inputs.tokens.shape[1]), inputs.tokens.shape)


def _from_each_call(inputs: Inputs, chunks: Sequence[int] | None) -> np.ndarray:
    sizes = [inputs.tokens.shape[1]] if chunks is None else chunks
    columns = np.concatenate([np.arange(size) for size in sizes])
    return np.broadcast_to(columns, inputs.tokens.shape)


def _below_length(inputs: Inputs, chunks: Sequence[int] | None) -> np.ndarray:
    sizes = [inputs.tokens.shape[1]] if chunks is None else chunks
    highest = np.concatenate([np.full(size, size - 1) for size in sizes])
    return np.minimum(inputs.positions, highest)
