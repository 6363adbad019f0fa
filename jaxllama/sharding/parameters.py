"""Parameters that are cut along `fsdp`, put together where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx

from jaxllama.quantisation.arrays import Int4Array, Int8Array
from jaxllama.sharding.layout import ModelSharding
from jaxllama.sharding.rules import PARAMETERS, Names

Module = TypeVar("Module", bound=nnx.Module)


def gathered(module: Module, sharding: ModelSharding | None, name: str = "") -> Module:
    """Return a module for one use, whose parameters are whole along `fsdp`.

    Left to itself the compiler may move activations in their place, which are more, or all of a
    table for the rows that are looked up. What it puts together here it lets go of after the use,
    and gradients come back cut.

    Args:
        module: a layer, or a part of the model that has parameters.
        sharding: the model's; nothing is done without one, or without devices along `fsdp`.
        name: of the module, where it has a parameter itself.
    """
    if sharding is None or sharding.sizes["fsdp"] == 1:
        return module
    graph, state = nnx.split(module)
    whole = {
        path: held.replace(on_leaves(sharding.keep, held.get_value(), _whole((name, *path))))
        for path, held in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(whole))


def on_leaves(function: Callable[[Any, Names], Any], array: Any, names: Names) -> Any:
    """Apply a function to the arrays that a parameter is held as, each with the names of its axes.

    Args:
        function: from an array and names.
        array: one array, or one of fewer bits; of int4 rows are never cut, for a byte has numbers
            of both halves of one.
        names: of the parameter's axes.
    """
    rows = names[:-1]
    if isinstance(array, Int8Array):
        return Int8Array(function(array.values, names), function(array.scale, rows))
    if isinstance(array, Int4Array):
        packed, steps = (function(part, (*rows, None)) for part in (array.packed, array.steps))
        return Int4Array(packed, steps, function(array.scale, rows))
    return function(array, names)


def _whole(path: tuple[object, ...]) -> Names:
    names = PARAMETERS.get(str(path[-2]), ())
    return tuple(None if name == "embed" else name for name in names)
