"""Whether the machine has room for inputs of a length, asked before anything is allocated.

Attention maps grow with the square of the length, all else with the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxllama.errors import InputError, argument
from jaxllama.memory import free_bytes, size_in_words
from parity.scenarios import Shape

# Float64 maps that are held at once, measured on `tiny` as the growth of a run's peak with the
# length. Passes run one after another: the largest of those asked for counts.
_FREE = {"f64": 5.9, "f32": 4.5, "bf16": 4.5}
_ISOLATED = 7.9
_STREAMED = 11.0
DECODE_MAPS = 6.6
GENERATE_MAPS = 2.0
DRY_RUN_MAPS = 2.0
_BACKWARD_OF_LAYER = 4.0
# What is quantised is run beside the reference, which alone has maps of these.
QUALITY_MAPS = 4.0
# What is captured is one implementation's scores and weights, in its own dtype.
CAPTURED_MAPS = 1.0
_MAP_BYTES = 8


def check_room(
    shapes: Sequence[Shape], heads: int, *, maps: float, free: int | None = None
) -> None:
    """Refuse scenarios whose attention maps alone are more than the memory that is free.

    Args:
        shapes: of the scenarios. Those that run as one batch are held together.
        heads: N.
        maps: float64 maps [B N T T] that are held at once.
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
        per_square = math.ceil(maps * rows * heads * _MAP_BYTES)
        if per_square * length**2 <= free:
            continue
        fits = math.isqrt(free // per_square)
        several = len({*shapes}) > 1
        raise InputError(
            f"{length} tokens per row (scenario {', '.join(s.name for s in together)}): attention "
            f"maps of {rows} x {heads} x {length} x {length} in float64, {maps:g} at once, take at "
            f"least {size_in_words(per_square * length**2)}, and {size_in_words(free)} of this "
            f"machine's memory are free; give {argument('length', max(fits, 1))} or less"
            + (f", or one of {argument('scenarios')} at a time" if several else "")
        )


def forward_maps(modes: Sequence[str], lanes: Sequence[str], *, streamed: bool) -> float:
    """Return how many maps the forward passes of a run hold; through caches: `DECODE_MAPS`.

    Args:
        modes: of the run.
        lanes: its dtypes, one of which is run at a time.
        streamed: one layer is held at a time.
    """
    if streamed:
        return _STREAMED
    return _ISOLATED if "isolated" in modes else max(_FREE[lane] for lane in lanes)


def backward_maps(layers: int) -> float:
    """Return how many maps are held where gradients are taken: every layer keeps its own."""
    return _BACKWARD_OF_LAYER * layers
