"""What an array of mask values means: bool, 0/1, or added to the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["bool", "zero_one", "additive"]

# A mask proper has few values: 0 and one or two fills. More, and it carries a positional bias, in
# which only a number that no bias reaches is taken for a fill.
_FEW_VALUES = 4
_SURELY_A_FILL = -1e3


@dataclass(frozen=True)
class MaskReading:
    """The meaning of a mask's values.

    Attributes:
        kind: by its values and dtype, not by how it will be used.
        use: how a kernel will take it: "bool", or "additive" to the scores.
        seen: True where the writer meant the key to be seen; the array's own shape.
        fills: the distinct values that hide, ascending; -inf first.
        shown: the distinct values of cells that are seen.
    """

    kind: Kind
    use: Literal["bool", "additive"]
    seen: np.ndarray
    fills: np.ndarray
    shown: np.ndarray


def read(mask: np.ndarray, use: Literal["bool", "additive"] | None) -> MaskReading:
    """Return what a mask's values mean.

    Args:
        mask: bool, integer or floating (bfloat16 included), any shape.
        use: how a kernel takes it; by default floats are added and the rest is bool.
    """
    floating = mask.dtype.kind not in "biu"
    values = mask if mask.dtype.kind in "biuf" else mask.astype(np.float64)
    distinct = np.unique(values).astype(np.float64)
    is_binary = bool(np.isin(distinct, (0, 1)).all())
    counts = not floating and use != "additive" and bool((distinct >= 0).all())
    if mask.dtype == np.bool_:
        kind: Kind = "bool"
    elif counts or is_binary and not (floating and distinct.tolist() == [0.0]):
        kind = "zero_one"
    else:
        kind = "additive"  # all zeros included: nothing is hidden
    if kind == "additive":
        negative = distinct[distinct < 0]
        few = len(distinct) <= _FEW_VALUES
        fills = negative if few else negative[negative <= _SURELY_A_FILL]
        hidden = np.isin(values, fills)
    else:
        fills = np.array([], np.float64)
        hidden = values == 0
    return MaskReading(
        kind=kind,
        use=use or ("additive" if floating else "bool"),
        seen=~hidden,
        fills=fills,
        shown=np.setdiff1d(distinct, fills) if kind == "additive" else distinct[distinct != 0],
    )
