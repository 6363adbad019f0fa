"""What is to be measured: texts or a trace's inputs, and what their queries may see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.errors import InputError, argument
from jaxllama.masks import Mask
from parity.health.groups import check_groups
from parity.health.texts import TextRows, batches, given_rows
from parity.inputs import Inputs
from parity.runner.prompt import token_texts
from parity.runner.room import check_room
from parity.scenarios import Shape
from parity.subjects.jaxllama.run import tokens_of
from parity.subjects.traces import TraceSubject


@dataclass(frozen=True)
class PreparedTexts:
    """What is to be measured, all of it checked.

    Attributes:
        inputs: batches.
        visible: what queries of each may see.
        texts: what each token of each row reads as.
        text: where the rows are from.
        first, second: rows of the two groups; the second is empty without one.
        notes: remarks.
    """

    inputs: list[Inputs]
    visible: list[np.ndarray]
    texts: list[list[str]]
    text: str
    first: list[int]
    second: list[int]
    notes: list[str]

    @property
    def lengths(self) -> list[int]:
        """Return the real tokens of each row."""
        return [int(n) for one in self.inputs for n in one.valid.sum(axis=1)]

    def token(self, row: int, at: int) -> str:
        """Say what stands at a row's index."""
        if not (0 <= row < len(self.texts) and 0 <= at < len(self.texts[row])):
            return str(at)
        return f"{at} “{self.texts[row][at]}”"


def prepare_texts(
    opened: Checkpoint,
    *,
    text: str | Path | None,
    length: int | None,
    mask: Mask | None,
    against: str | Path | None,
    paired: bool,
) -> PreparedTexts:
    """Read and check the texts; arguments as of `parity.check_health`."""
    one = given_rows(None if text is None else Path(text), opened, length)
    rows, second = list(one.rows), list[int]()
    notes = _text_notes(one)
    first = list(range(len(rows)))
    if against is not None:
        other = given_rows(Path(against), opened, length)
        check_groups(len(rows), len(other.rows), paired=paired, second_path=Path(against))
        notes += _text_notes(other)
        # One text is run once, whichever group it is in: its figures are then equal.
        places = {row: at for at, row in reversed([*enumerate(rows)])}
        for row in other.rows:
            if row not in places:
                places[row] = len(rows)
                rows.append(row)
            second.append(places[row])
    heads = opened.config.num_attention_heads
    check_room([Shape("text", 1, max(map(len, rows)))], heads, maps=_MAPS)
    inputs = batches(rows, heads, opened.config.pad_token_id)
    return _prepared(opened, inputs, mask, one.source, (first, second), notes)


def prepare_trace(
    opened: Checkpoint, trace: TraceSubject, mask: Mask | None, **beside: object
) -> PreparedTexts:
    """Take a captured trace's own inputs.

    Args:
        opened: the checkpoint that it is of.
        trace: the trace.
        mask: as of `parity.check_health`.
        beside: arguments that a trace has no use for, None where they were not given.
    """
    given = [argument(name) for name, value in beside.items() if value is not None]
    if given:
        raise InputError(
            f"subject {trace.name}: a captured trace has texts of its own; leave out "
            f"{', '.join(given)}"
        )
    inputs = trace.forward_inputs()
    if not inputs:
        raise InputError(f"subject {trace.name}: no forward pass was captured; capture mode free")
    layers = opened.config.num_hidden_layers
    if trace.layers != layers:
        raise InputError(
            f"subject {trace.name}: a trace of {trace.layers} layers, and {opened.label} has "
            f"{layers}; give the checkpoint that it is of"
        )
    notes = [note for one in inputs for note in one.notes]
    return _prepared(opened, inputs, mask, "the captured trace", ([], []), notes)


# Float64 maps [N, T, T] that are alive at once, at the least.
_MAPS = 2


def _prepared(
    opened: Checkpoint,
    inputs: list[Inputs],
    mask: Mask | None,
    source: str,
    groups: tuple[list[int], list[int]],
    notes: list[str],
) -> PreparedTexts:
    return PreparedTexts(
        inputs=inputs,
        visible=[_visible(one, mask) for one in inputs],
        texts=[row for one in inputs for row in token_texts(opened, one.tokens)],
        text=source,
        first=groups[0],
        second=groups[1],
        notes=notes,
    )


def _text_notes(rows: TextRows) -> list[str]:
    notes = list(rows.notes)
    if not rows.truncated:
        return notes
    most = max(map(len, rows.rows))
    count = f" of {rows.truncated} texts" if rows.truncated > 1 else ""
    return [
        *notes,
        f"{rows.source}: the first {most} tokens{count} were taken ({argument('length')})",
    ]


def _visible(inputs: Inputs, mask: Mask | None) -> np.ndarray:
    """Return what a batch's queries may see; rows of pads are empty."""
    if mask is None:
        return inputs.mask
    tokens = tokens_of(inputs, slice(None))
    seen = np.array(mask.bind(tokens, tokens, empty_row="zero").to_bool())
    seen = np.broadcast_to(seen, inputs.mask.shape) & inputs.valid[:, :, None]
    return np.ascontiguousarray(seen)
