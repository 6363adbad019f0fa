"""Whether the machine has room for inputs of a length, asked before anything is allocated.

Attention maps grow with the square of the length, all else with the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxllama.errors import InputError, argument
from jaxllama.memory import free_bytes, size_in_words
from parity.scenarios import Shape

# Float64 maps that a run holds at once, at the least: two are the reference's scores and weights.
# Measured on `tiny` as the growth of its peak with the length: 4.5 in float32, 5.9 in float64, 7.9
# with the isolated mode, 6.6 through the cache, 11 streamed; backwards 4.0 for each of its layers.
FORWARD_MAPS = 4
BACKWARD_MAPS = 3
# What is captured is one implementation's scores and weights, in its own dtype.
CAPTURED_MAPS = 1
_MAP_BYTES = 8


def check_room(shapes: Sequence[Shape], heads: int, *, maps: int, free: int | None = None) -> None:
    """Refuse scenarios whose attention maps alone are more than the memory that is free.

    Args:
        shapes: of the scenarios. Those that run as one batch are held together.
        heads: N.
        maps: float64 maps [B N T T] that are held at once, at the least.
        free: bytes of memory; the machine's if None.

    Raises:
        InputError: they are; it says which length would fit.
    """
    free = free_bytes() if free is None else free
    if free is None:
        return
    for batch in dict.fromkeys(shape.batch for shape in shapes):
        together = [shape for shape in shapes if shape.batch == batch]
        rows, length = sum(shape.rows for shape in together), together[0].length
        per_square = maps * rows * heads * _MAP_BYTES
        if per_square * length**2 <= free:
            continue
        fits = math.isqrt(free // per_square)
        several = len({*shapes}) > 1
        raise InputError(
            f"{length} tokens per row (scenario {', '.join(s.name for s in together)}): attention "
            f"maps of {rows} x {heads} x {length} x {length} in float64, {maps} at once, take at "
            f"least {size_in_words(per_square * length**2)}, and {size_in_words(free)} of this "
            f"machine's memory are free; give {argument('length', max(fits, 1))} or less"
            + (f", or one of {argument('scenarios')} at a time" if several else "")
        )
