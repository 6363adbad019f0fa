"""Which cells of a tap count, when one run is held against another.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.inputs import Inputs, decode_chunks
from parity.taps import AXES, split_name


def real_cells(shown: Mapping[str, np.ndarray], inputs: Inputs) -> dict[str, np.ndarray]:
    """Return taps whose cells of pads, and of scores that the mask hides, are zero.

    Args:
        shown: by the number of the call and the tap's name: `0.layers.1.q_proj`.
        inputs: of the run.
    """
    sizes = decode_chunks(inputs)
    found = {}
    calls = max(int(name.split(".", 1)[0]) for name in shown) + 1
    stops = np.cumsum(sizes) if calls > 1 else [inputs.tokens.shape[1]]
    for key, value in shown.items():
        call, name = key.split(".", 1)
        kind, _ = split_name(name)
        stop = int(stops[int(call)])
        start = int(stops[int(call) - 1]) if int(call) else 0
        found[key] = np.where(_counted(kind, value, inputs, start, stop), value, 0.0)
    return found


def _counted(kind: str, value: np.ndarray, inputs: Inputs, start: int, stop: int) -> np.ndarray:
    letters = AXES[kind]
    if "B" not in letters or value.ndim != len(letters):
        return np.ones((), bool)
    queries = inputs.valid[:, start:stop]
    if kind == "layers.attn_scores":
        return inputs.mask[:, None, start:stop, :stop] & queries[:, None, :, None]
    shape = [1] * value.ndim
    letter = "T" if "T" in letters else "S"
    valid = queries if letter == "T" else inputs.valid[:, :stop]
    shape[0], shape[letters.index(letter)] = valid.shape
    return valid.reshape(shape)
