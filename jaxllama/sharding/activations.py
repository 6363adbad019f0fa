"""Named values of a pass, kept where a mesh is to have them."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array

from jaxllama.sharding.layout import ModelSharding
from jaxllama.sharding.rules import ACTIVATIONS
from jaxllama.taps import Tapper, Values


class Placed(Tapper):
    """Lays every named value out on a mesh, and hands it to another tap.

    The compiler would find a layout by itself, from those of the parameters; which one is its
    affair, and changes with its version and the sizes.

    Args:
        tap: which sees the values.
        sharding: where they lie.
    """

    def __init__(self, tap: Tapper, sharding: ModelSharding) -> None:
        self._tap, self._sharding = tap, sharding
        self.watched = tap.watched

    def __call__(self, name: str, value: Array) -> Array:
        names = ACTIVATIONS.get(name)
        if names is None:
            return self._tap(name, value)
        value = self._sharding.keep(value, names)
        seen = self._tap(name, value)
        return value if seen is value else self._sharding.keep(seen, names)

    def inner(self, forced: Mapping[str, Array]) -> Tapper:
        return Placed(self._tap.inner(forced), self._sharding)

    def forced_layers(self) -> dict[str, Array]:
        return self._tap.forced_layers()

    def recorded(self) -> Values:
        return self._tap.recorded()

    def add_layers(self, stacked: Values) -> None:
        self._tap.add_layers(stacked)

    def add_layer(self, index: int, values: Values) -> None:
        self._tap.add_layer(index, values)


def placed(tap: Tapper, sharding: ModelSharding | None) -> Tapper:
    """Return the tap, which lays values out if there is a mesh."""
    return tap if sharding is None or isinstance(tap, Placed) else Placed(tap, sharding)
