"""Naming a model's intermediates: recording them, and putting others in their place.

The model calls `tap(name, value)` at every point worth comparing and goes on with what comes
back. `untapped` is the production path: it hands the value straight back and leaves no trace in
the compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jaxtyping import Array, Shaped

Values = dict[str, Shaped[Array, "..."]]


class Tap(Protocol):
    """What a model needs from a tap; see `Taps` and `untapped`."""

    def __call__(self, name: str, value: Array) -> Array:
        """Take note of `value` under `name`; return the value to continue with."""
        ...

    def inner(self, forced: Mapping[str, Array]) -> Tap:
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


class Untapped:
    """Records nothing and changes nothing."""

    def __call__(self, name: str, value: Array) -> Array:
        return value

    def inner(self, forced: Mapping[str, Array]) -> Tap:
        return self

    def forced_layers(self) -> dict[str, Array]:
        return {}

    def recorded(self) -> Values:
        return {}

    def add_layers(self, stacked: Values) -> None:
        return None


untapped: Tap = Untapped()


class Taps:
    """Records every named value, and continues with a given one where it has been told to.

    Replacing each value after recording it makes every operator work on inputs of the caller's
    choice, so one pass judges all operators apart from each other.

    A `Taps` must be made, used and read within one trace: return `recorded()` from the jitted
    function.

    Args:
        forced: replacements by full name (`embed`, `logits`); for layers, by `layers.<name>` with
            a leading layer axis. Cast to the dtype of the value they replace.
    """

    def __init__(self, forced: Mapping[str, Array] | None = None) -> None:
        self._forced = dict(forced or {})
        self._values: Values = {}

    def __call__(self, name: str, value: Array) -> Array:
        self._values[name] = value
        replacement = self._forced.get(name)
        return value if replacement is None else replacement.astype(value.dtype)

    def inner(self, forced: Mapping[str, Array]) -> Taps:
        return Taps(forced)

    def forced_layers(self) -> dict[str, Array]:
        prefix = "layers."
        return {k.removeprefix(prefix): v for k, v in self._forced.items() if k.startswith(prefix)}

    def recorded(self) -> Values:
        return dict(self._values)

    def add_layers(self, stacked: Values) -> None:
        count = next((len(v) for v in stacked.values()), 0)
        for i in range(count):
            for name, value in stacked.items():
                self._values[f"layers.{i}.{name}"] = value[i]
