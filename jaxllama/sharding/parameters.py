"""Parameters that are cut along `fsdp`, put together where they are used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxllama.quantisation.arrays import Int4Array, Int8Array
from jaxllama.sharding.layout import ModelSharding
from jaxllama.sharding.rules import PARAMETERS, Names

Module = TypeVar("Module", bound=nnx.Module)


@runtime_checkable
class InParts(Protocol):
    """What a parameter is held as where it is several arrays, each with axes of its own."""

    def on_parts(self, function: Callable[[Any, Names], Any], names: Names) -> Any:
        """Apply a function to each of them and the names of its axes, and return the whole.

        Args:
            function: from an array and names.
            names: of the parameter's axes.
        """


def gathered(module: Module, sharding: ModelSharding | None, name: str = "") -> Module:
    """Return a module for one use, whose parameters are whole along `fsdp`.

    Left to itself the compiler may move activations in their place, which are more, or all of a
    table for the rows that are looked up. What it puts together here it lets go of after the use,
    and gradients come back cut as the parameters are: each device has the sum of its part alone.

    Args:
        module: a layer, or a part of the model that has parameters.
        sharding: the model's; nothing is done without one.
        name: of the module, where it has a parameter itself.
    """
    if sharding is None:
        return module
    graph, state = nnx.split(module)

    def whole(array: Array, names: Names) -> Array:
        if jnp.issubdtype(array.dtype, jnp.floating):
            return _put_together(array, sharding, names)
        return sharding.keep(array, _whole(names))

    used = {
        path: held.replace(on_leaves(whole, held.get_value(), _names((name, *path))))
        for path, held in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(used))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _put_together(array: Array, sharding: ModelSharding, names: Names) -> Array:
    return sharding.keep(array, _whole(names))


def _put_together_forward(
    array: Array, sharding: ModelSharding, names: Names
) -> tuple[Array, None]:
    return sharding.keep(array, _whole(names)), None


def _cut_again(sharding: ModelSharding, names: Names, _: None, pulled: Array) -> tuple[Array]:
    return (sharding.keep(pulled, names),)


_put_together.defvjp(_put_together_forward, _cut_again)


def on_leaves(function: Callable[[Any, Names], Any], array: Any, names: Names) -> Any:
    """Apply a function to the arrays that a parameter is held as, each with the names of its axes.

    Args:
        function: from an array and names.
        array: one array, or one of fewer bits; of int4 vectors are cut where they were packed so.
        names: of the parameter's axes.
    """
    rows = names[:-1]
    if isinstance(array, InParts):
        return array.on_parts(partial(on_leaves, function), names)
    if isinstance(array, Int8Array):
        return Int8Array(function(array.values, names), function(array.scale, rows))
    if isinstance(array, Int4Array):
        last = names if array.parts > 1 else (*rows, None)
        packed, steps = (function(part, last) for part in (array.packed, array.steps))
        return Int4Array(packed, steps, function(array.scale, rows), array.parts)
    return function(array, names)


def _names(path: tuple[object, ...]) -> Names:
    return PARAMETERS.get(str(path[-2]), ())


def _whole(names: Names) -> Names:
    return tuple(None if name == "embed" else name for name in names)
