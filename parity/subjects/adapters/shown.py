"""Picking out of a call what a tap names, and telling a slip in the names from a value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxllama.errors import InputError
from parity.subjects.adapters.layouts import Tap, pattern

# An item that names the only array of a result: itself, or of a tuple or mapping.
ONLY = "*"


def resolved(result: Any, tap: Tap) -> Tap:
    """Return a tap with the item that `ONLY` stands for.

    Raises:
        InputError: there are several arrays, or none.
    """
    if tap.item != ONLY:
        return tap
    if is_array(result):
        return replace(tap, item=None)
    held: dict[Any, Any] = {}
    if isinstance(result, tuple | list):
        held = dict(enumerate(result))
    elif isinstance(result, Mapping):
        held = dict(result)
    found = [item for item, value in held.items() if is_array(value)]
    if len(found) != 1:
        raise InputError(
            f"names: {tap.name}: {len(found)} arrays are in {_described(result)}; say which: "
            f"Tap({pattern(tap).name!r}, item=...)"
        )
    return replace(tap, item=found[0])


def is_array(value: Any) -> bool:
    """Return whether a value is an array, of any framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def item_of(result: Any, tap: Tap) -> Any:
    """Return what a tap names of a result: all of it, or an item.

    Raises:
        InputError: there is no such item, or it is no array.
    """
    if tap.item is None:
        return array_of(result, tap)
    try:
        if isinstance(tap.item, str) and not isinstance(result, Mapping):
            value = getattr(result, tap.item)
        else:
            value = result[tap.item]
    except (AttributeError, IndexError, KeyError, TypeError):
        raise InputError(
            f"names: {tap.name}: there is no item={tap.item!r} in {_described(result)}"
        ) from None
    return array_of(value, tap)


def array_of(value: Any, tap: Tap) -> Any:
    """Return a value if it is an array, of any framework.

    Raises:
        InputError: it is something else, such as a tuple of which no item is named.
    """
    if is_array(value):
        return value
    if isinstance(value, int | float | list) and np.asarray(value).dtype.kind in "fiub":
        return np.asarray(value)
    like = pattern(tap).name
    remedy = "name what holds an array"
    if isinstance(value, tuple | list) and tap.item is None:
        remedy = f"say which: Tap({like!r}, item=0)"
    elif (isinstance(value, Mapping) or hasattr(value, "__dict__")) and tap.item is None:
        some = next(iter(value if isinstance(value, Mapping) else vars(value)), "name")
        remedy = f"say which: Tap({like!r}, item={some!r})"
    raise InputError(f"names: {tap.name} is {_described(value)}, no array; {remedy}")


def _described(value: Any) -> str:
    """Say what a value is, with the items that it has."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, list(value)[:6])) or 'nothing'}"
    if hasattr(value, "shape"):
        return f"an array {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def argument_of(
    original: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], tap: Tap, *, bound: bool
) -> tuple[Any, int | str]:
    """Return where an argument lies that a tap names: in `args` or `kwargs`, and at which key.

    Without an item it is the first, however it was passed; a number counts parameters, and a name
    is found where it was passed by place.

    Args:
        original: what is called.
        args: by place, `self` included.
        kwargs: by name.
        tap: what is named.
        bound: whether its first argument is the object, which is not counted.

    Raises:
        InputError: the call has no such argument.
    """
    names = _parameters(original)
    wanted = (0 if tap.item is None else tap.item) if not isinstance(tap.item, str) else tap.item
    if isinstance(wanted, int):
        place = wanted + bound
        if bound <= place < len(args):
            return args, place
        name = names[place] if 0 <= place < len(names) else None
        if name not in kwargs and tap.item is None and kwargs:
            name = next(iter(kwargs))  # a function that takes what it is given
    else:
        name = wanted
        if name in names and names.index(name) < len(args) and name not in kwargs:
            return args, names.index(name)
    if name is None or name not in kwargs:
        raise InputError(
            f"names: {tap.name}: the call has no argument {wanted!r}: {len(args) - bound} by place"
            f" and {', '.join(kwargs) or 'none'} by name"
        )
    return kwargs, name


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # what is written in C may hide its signature
        return []
    return [one.name for one in found if one.kind is not one.VAR_POSITIONAL]
