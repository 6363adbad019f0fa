"""What the reference says to each token of a text: a plain pass over all of it, no cache, no loop.

If every token is the one that the reference chooses after all that stands before it, the text is
the one that a loop over the reference writes. Reading what the subject wrote says the same, and
goes on where rounding has decided between two equals.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from parity.inputs import Inputs, visible_keys
from parity.subjects.torch_reference.subject import TorchReference


def padded_inputs(rows: Sequence[Sequence[int]], side: Literal["left", "right"]) -> Inputs:
    """Return rows of tokens as one batch, pads on one side, positions from each first token on."""
    length = max(map(len, rows))
    tokens, valid = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for b, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        tokens[b, place], valid[b, place] = row, True
    positions = np.where(valid, valid.cumsum(axis=1) - 1, 0).astype(np.int32)
    return Inputs(f"{side}_pads", tokens, positions, valid, visible_keys(valid))


def logits_after(
    reference: TorchReference, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[Float[np.ndarray, "_ V"]]:
    """Return a row's logits for each of its tokens from `starts` on, given all before it.

    Args:
        reference: of any dtype.
        rows: whole texts.
        starts: index of the first token asked about, at least 1; a row a number.
    """
    run, taps = reference.start(padded_inputs(rows, "right")), {}
    for _ in range(reference.config.num_hidden_layers + 2):
        taps = run.step()
    logits = taps["logits"].astype(np.float64)
    return [
        logits[b, start - 1 : len(row) - 1]
        for b, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]
