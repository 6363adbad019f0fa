"""Naming a model's intermediates: recording them, and putting others in their place.

The model calls `tap(name, value)` at every point worth comparing and goes on with what comes
back. `untapped` is the production path: it hands the value straight back and leaves no trace in
the compiled program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxllama.errors import InputError, join_problems

Values = dict[str, Shaped[Array, "..."]]

MODEL_TAPS = ("rope.inv_freq", "positions", "mask", "embed", "norm", "logits")
LAYER_TAPS = (
    "input",
    "input_layernorm",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_rope",
    "k_rope",
    "attn_scores",
    "attn_probs",
    "attn_context",
    "o_proj",
    "post_attention",
    "post_attention_layernorm",
    "gate_proj",
    "up_proj",
    "mlp_act",
    "down_proj",
    "output",
)
CACHE_TAPS = ("cache.k", "cache.v")

_NUMBERED = re.compile(r"(layers|cache)\.(\d+)\.(.+)")


class Tapper(Protocol):
    """What a model needs from a tap; see `Taps` and `untapped`.

    Attributes:
        watched: whether values are looked at: what shows none may run then, or be made, for it.
    """

    watched: bool

    def __call__(self, name: str, value: Array) -> Array:
        """Take note of `value` under `name`; return the value to continue with."""
        ...

    def inner(self, forced: Mapping[str, Array]) -> Tapper:
        """Return the tap for one layer, whose names carry no layer index."""
        ...

    def forced_layers(self) -> dict[str, Array]:
        """Return the replacements for layers, by short name, stacked on a leading layer axis."""
        ...

    def recorded(self) -> Values:
        """Return what has been recorded so far."""
        ...

    def add_layers(self, stacked: Values) -> None:
        """Take over layer values by short name, stacked on a leading layer axis."""
        ...

    def add_layer(self, index: int, values: Values) -> None:
        """Take over one layer's values by short name."""
        ...


class Untapped(Tapper):
    """Records nothing and changes nothing."""

    watched = False

    def __call__(self, name: str, value: Array) -> Array:
        return value

    def inner(self, forced: Mapping[str, Array]) -> Tapper:
        return self

    def forced_layers(self) -> dict[str, Array]:
        return {}

    def recorded(self) -> Values:
        return {}

    def add_layers(self, stacked: Values) -> None:
        return None

    def add_layer(self, index: int, values: Values) -> None:
        return None


untapped: Tapper = Untapped()


class Taps(Tapper):
    """Records every named value, and continues with a given one where it has been told to.

    Replacing each value after recording it makes every operator work on inputs of the caller's
    choice, so one pass judges all operators apart from each other.

    A `Taps` must be made, used and read within one trace: return `recorded()` from the jitted
    function.

    A model records `layers.{i}.<name>` and, with a cache, what it attends to after the new tokens
    were written, `cache.{i}.k` and `cache.{i}.v`, in the cache's own dtype. A layer run by itself
    uses the short names: `q_proj`, `cache.k`.

    Args:
        forced: replacements by the names `recorded()` gives, so that one run's record can be
            forced on another. The layers run as one scan: a name is forced in all of them or in
            none. For a whole model `layers.<name>` with a leading layer axis does the same. Cast
            to the dtype of the value they replace.

    Raises:
        InputError: names that no model records, or given for some layers only: they would be
            ignored in silence otherwise.
    """

    watched = True

    def __init__(self, forced: Mapping[str, Array] | None = None) -> None:
        self._forced: dict[str, Array] = {}
        stacks: dict[str, dict[int, Array]] = {}
        problems: list[str] = []
        for name, value in (forced or {}).items():
            numbered = _NUMBERED.fullmatch(name)
            if numbered:
                group, index, rest = numbered.groups()
                short = rest if group == "layers" else f"cache.{rest}"
                stacks.setdefault(f"layers.{short}", {})[int(index)] = value
            else:
                self._forced[name] = value
        for name, by_index in stacks.items():
            if sorted(by_index) != list(range(len(by_index))):
                problems.append(
                    f"{name} for layers {sorted(by_index)} only: force all or none, or run one "
                    "layer by itself (model.layer)"
                )
                continue
            self._forced[name] = jnp.stack([by_index[i] for i in range(len(by_index))])
        known = {*MODEL_TAPS, *LAYER_TAPS, *CACHE_TAPS}
        known |= {f"layers.{name}" for name in (*LAYER_TAPS, *CACHE_TAPS)}
        problems += [f"{name}: no such tap" for name in self._forced if name not in known]
        if problems:
            raise InputError(join_problems("forced taps", problems))
        self._values: Values = {}

    def __call__(self, name: str, value: Array) -> Array:
        self._values[name] = value
        replacement = self._forced.get(name)
        if replacement is None:
            return value
        if replacement.shape != value.shape:
            raise InputError(
                f"forced tap {name}: shape {replacement.shape}, expected {value.shape}, that of "
                "the value it replaces"
            )
        return jnp.asarray(replacement, value.dtype)

    def inner(self, forced: Mapping[str, Array]) -> Taps:
        return Taps(forced)

    def forced_layers(self) -> dict[str, Array]:
        prefix = "layers."
        return {k.removeprefix(prefix): v for k, v in self._forced.items() if k.startswith(prefix)}

    def recorded(self) -> Values:
        return dict(self._values)

    def add_layers(self, stacked: Values) -> None:
        # A scan hands its results back sorted by name; the record is in the order of data flow.
        order = {name: place for place, name in enumerate((*LAYER_TAPS, *CACHE_TAPS))}
        names = sorted(stacked, key=lambda name: order.get(name, len(order)))
        count = len(stacked[names[0]]) if names else 0
        for i in range(count):
            self.add_layer(i, {name: stacked[name][i] for name in names})

    def add_layer(self, index: int, values: Values) -> None:
        for name, value in values.items():
            full = f"cache.{index}.{name[6:]}" if name in CACHE_TAPS else f"layers.{index}.{name}"
            self._values[full] = value
