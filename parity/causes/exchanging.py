"""Weights of a layer that are used for each other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from parity.causes.wrong import Change


def exchanged(a: str, b: str, layer: int | None) -> Change:
    """Return a change that reads module `a` for `b` and the reverse, in one layer or in all."""
    other = {a: b, b: a}

    def weight(name: str, read: Callable[[str], Tensor]) -> Tensor | None:
        parts = name.split(".")
        module = ".".join(parts[3:-1])
        if module not in other or (layer is not None and int(parts[2]) != layer):
            return None
        return read(".".join([*parts[:3], other[module], parts[-1]]))

    return Change(weight=weight)
