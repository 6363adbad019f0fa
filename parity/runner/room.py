"""Whether the machine has room for inputs of a length, asked before anything is allocated.

Attention maps grow with the square of the length, all else with the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxllama.errors import InputError, argument
from jaxllama.memory import free_bytes, size_in_words
from parity.scenarios import Shape

# Float64 maps that are held at once, by what is run: the growth of a run's peak on `tiny` with the
# square of the length. Passes run one after another, and the largest of those asked for counts.
_FREE = {"f64": 5.9, "f32": 4.5, "bf16": 4.5}
_ISOLATED = 7.9  # of one dtype
_SEVERAL = 10.0  # of all three, whose references are held side by side
_STREAMED = 11.0
DECODE_MAPS = 6.6
GENERATE_MAPS = 6.0
# Every layer keeps its own until gradients have been taken.
_GRAD_OF_LAYER = 4.0
_STEP_OF_LAYER = 1.8
# Of `parity names`, by dtype: no reference runs beside it.
DRY_RUN_MAPS = {"f64": 4.2, "f32": 2.0, "bf16": 2.0}
# What is quantised runs beside the reference, free.
QUALITY_MAPS = 4.5
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
        lanes: its dtypes.
        streamed: one layer is held at a time.
    """
    if streamed:
        return _STREAMED
    if "isolated" in modes:
        return _SEVERAL if len(lanes) == len(_FREE) else _ISOLATED
    return max(_FREE[lane] for lane in lanes)


def grad_maps(layers: int) -> float:
    """Return how many maps are held where gradients are compared."""
    return _GRAD_OF_LAYER * layers


def step_maps(layers: int) -> float:
    """Return how many maps a step of training holds."""
    return _STEP_OF_LAYER * layers
