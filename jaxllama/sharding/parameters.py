"""Parameters that are cut along `fsdp`, put together where they are used."""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

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
    flat = nnx.to_flat_state(state)
    whole = {
        path: held.replace(sharding.keep(held[...], _whole((name, *path)))) for path, held in flat
    }
    return nnx.merge(graph, nnx.from_flat_state(whole))


def _whole(path: tuple[object, ...]) -> Names:
    names = PARAMETERS.get(str(path[-2]), ())
    return tuple(None if name == "embed" else name for name in names)
