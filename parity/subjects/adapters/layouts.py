"""Layouts of another implementation's arrays, as a user declares them, and the canonical ones.

No axes are moved but those stated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.taps import AXES, split_name

LETTERS = "BTSNKGHDFVLR21"
# Parameters by canonical name, less the layer: PyTorch's [out, in], heads and their features in
# one axis.
PARAMETERS = {
    "model.embed_tokens.weight": "VD",
    "model.layers.input_layernorm.weight": "D",
    "model.layers.self_attn.q_proj.weight": "(NH)D",
    "model.layers.self_attn.k_proj.weight": "(KH)D",
    "model.layers.self_attn.v_proj.weight": "(KH)D",
    "model.layers.self_attn.o_proj.weight": "D(NH)",
    "model.layers.post_attention_layernorm.weight": "D",
    "model.layers.mlp.gate_proj.weight": "FD",
    "model.layers.mlp.up_proj.weight": "FD",
    "model.layers.mlp.down_proj.weight": "DF",
    "model.norm.weight": "D",
    "lm_head.weight": "VD",
}


@dataclass(frozen=True)
class Tap:
    """Which canonical tap or parameter a value is, and how it is laid out.

    Attributes:
        name: canonical, with `{i}` for the layer: `layers.{i}.q_proj`.
        axes: the value's, in the letters of `parity.taps`, G for query heads to a kv head, 1 for
            an axis of length one, axes in parentheses lie in one: `BNTH`, `BT(NH)`, `BKGTS`. L
            is the axis of layers of a parameter that holds them all: `LDNH`. R and 2 are an H
            taken apart into rotated pairs and the two of a pair: where these lie side by side
            (interleaved, as Meta's), `BTN(R2)`; canonical are halves, `BTN(2R)`. None where the
            layout is canonical.
        item: of a tuple or mapping of results, which, `*` for its only array; of arguments, its
            number or its name.
        scale: what values are multiplied by before they are compared, where the other side has
            folded a factor in: of a `q_rope` that is divided by sqrt(H) already, sqrt(H).
    """

    name: str
    axes: str | None = None
    item: int | str | None = None
    scale: float = 1.0


def kind_of(tap: Tap) -> str:
    """Return a tap's canonical name without its layer."""
    return tap.name.replace(".{i}", "")


def pattern(tap: Tap) -> Tap:
    """Return a tap of no layer in particular."""
    kind, layer = split_name(tap.name)
    name = kind if layer is None else kind.replace(".", ".{i}.", 1)
    return Tap(name, tap.axes, scale=tap.scale)


def misfit(axes: str | None, wanted: str, *, stacked: bool, name: str) -> list[str]:
    """Return what is wrong with declared axes: nothing, or one problem.

    Args:
        axes: as declared; None for the canonical layout.
        wanted: the canonical axes.
        stacked: whether an axis L of layers may be among them.
        name: of the tap, for the problem.
    """
    if axes is None:
        return []
    groups, letters = _groups(axes), _letters(axes)
    given = letters.replace("1", "")
    if stacked and "L" in groups:
        given = given.replace("L", "", 1)
    expanded = [sorted(one) for one in _expansions(_letters(wanted)).values()]
    if groups and set(letters) <= set(LETTERS) and sorted(given) in expanded:
        return []
    return [f"axes {axes!r} of {name} do not hold those of {wanted!r}, once each"]


def sizes_of(
    config: LlamaConfig, inputs: Inputs, start: int = 0, stop: int | None = None
) -> dict[str, int]:
    """Return how long each axis is.

    Args:
        config: the model's.
        inputs: a scenario.
        start: first column of a call through a cache, which holds those before it.
        stop: one past its last.
    """
    batch, columns = inputs.tokens.shape
    stop = columns if stop is None else stop
    return {"B": batch, "T": stop - start, "S": stop, **weight_sizes(config)}


def weight_sizes(config: LlamaConfig) -> dict[str, int]:
    """Return how long the axes of parameters are."""
    return {
        "N": config.num_attention_heads,
        "K": config.num_key_value_heads,
        "G": config.num_attention_heads // config.num_key_value_heads,
        "H": config.head_dim,
        "R": config.head_dim // 2,
        "2": 2,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "L": config.num_hidden_layers,
        "1": 1,
    }


def canonical(
    array: Any,
    tap: Tap,
    sizes: Mapping[str, int],
    permute: Callable[[Any, list[int]], Any] = np.transpose,
) -> Any:
    """Bring an array from its declared layout into the canonical one.

    An array that is not laid out as declared is left as it is: its shape is then a finding.

    Args:
        array: of any framework.
        tap: what it is.
        sizes: of the axes.
        permute: the framework's own permutation of axes.

    Raises:
        InputError: it has the canonical shape where another is declared: it would pass for right.
    """
    if tap.scale != 1:
        array = _scaled(array, tap.scale)
    if tap.axes is None:
        return array
    letters, order, shape = _plan(tap, sizes)
    declared = _shape(tap.axes, sizes)
    if tuple(array.shape) != declared:
        if tuple(array.shape) == shape:
            raise InputError(
                f"names: {tap.name} is {shape}, which is the canonical layout; its axes "
                f"{tap.axes!r} are {declared}: leave them out"
            )
        return array
    parts = array.reshape([sizes[letter] for letter in letters])
    return permute(parts, order).reshape(shape)


def native(array: np.ndarray, tap: Tap, sizes: Mapping[str, int]) -> np.ndarray:
    """Bring an array from the canonical layout into the declared one."""
    if tap.scale != 1:
        array = _scaled(array, 1 / tap.scale)
    if tap.axes is None:
        return array
    letters, order, _ = _plan(tap, sizes)
    parts = array.reshape([sizes[letters[place]] for place in order])
    return parts.transpose(np.argsort(order)).reshape(_shape(tap.axes, sizes))


def layer_of(array: np.ndarray, tap: Tap, layer: int) -> tuple[np.ndarray, Tap]:
    """Return one layer of an array that may hold all of them, and how that is laid out."""
    groups = _groups(tap.axes or "")
    if "L" not in groups or array.ndim != len(groups):
        return array, tap
    return array.take(layer, groups.index("L")), replace(tap, axes=_without_layers(groups))


def stacked(arrays: Sequence[np.ndarray], tap: Tap, sizes: Mapping[str, int]) -> np.ndarray:
    """Return one array of all layers' in the declared layout, which has an axis L."""
    one = replace(tap, axes=_without_layers(_groups(tap.axes or "")))
    return np.stack(
        [native(a, one, sizes) for a in arrays], axis=_groups(tap.axes or "").index("L")
    )


def _without_layers(groups: Sequence[str]) -> str:
    return "".join(f"({group})" if len(group) > 1 else group for group in groups if group != "L")


def drop_unfilled(array: np.ndarray, tap: Tap, columns: int) -> np.ndarray:
    """Leave out of an array the slots of a cache that no column has been written to yet.

    Args:
        array: as declared in `tap`; a cache of fixed size shows as many keys as it has slots.
        tap: what it is.
        columns: how many are written.
    """
    groups = _groups(tap.axes or AXES[kind_of(tap)])
    if "S" not in groups or array.ndim != len(groups):
        return array
    return array[(slice(None),) * groups.index("S") + (slice(columns),)]


def _scaled(array: Any, scale: float) -> Any:
    """Return an array times a number, rounded once, to its own dtype."""
    if isinstance(array, np.ndarray) and array.dtype.itemsize < 8:
        return (array.astype(np.float64) * scale).astype(array.dtype)
    return array * scale


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in group) for group in _groups(axes))


def _plan(tap: Tap, sizes: Mapping[str, int]) -> tuple[list[str], list[int], tuple[int, ...]]:
    """Return the declared letters, the order that makes them canonical, the canonical shape."""
    assert tap.axes is not None
    kind = kind_of(tap)
    axes = PARAMETERS[kind] if kind in PARAMETERS else AXES[kind]
    letters = list(_letters(tap.axes))
    wanted = _expansions(_letters(axes))["G" in letters, "2" in letters]
    ones = [place for place, letter in enumerate(letters) if letter == "1"]
    order = [letters.index(letter) for letter in wanted] + ones
    return letters, order, _shape(axes, sizes)


def _letters(axes: str) -> str:
    return re.sub(r"[()]", "", axes)


def _expansions(canonical: str) -> dict[tuple[bool, bool], str]:
    """Return canonical axes, by whether heads are kv heads by their groups, features pairs."""
    return {
        (grouped, paired): canonical.replace("N", "KG" if grouped else "N").replace(
            "H", "2R" if paired else "H"
        )
        for grouped in (False, True)
        for paired in (False, True)
    }


def _groups(axes: str) -> list[str]:
    """Split axes into those of the array itself: `BT(NH)` -> B, T, NH. Empty if malformed."""
    found = re.findall(r"\((\w+)\)|(\w)", axes)
    groups = ["".join(pair) for pair in found]
    whole = "".join(f"({g})" if len(g) > 1 or f"({g})" in axes else g for g in groups)
    return groups if whole == axes else []
