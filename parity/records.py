"""Records from JSON, every field of the type it is declared with.

JSON knows no tuples and only finite figures: lists become tuples, `"nan"` and `"inf"` numbers.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxllama.errors import InputError

_NOT_FINITE = ("nan", "inf", "-inf")


def read_record(kind: type, document: Any, place: str) -> Any:
    """Build a dataclass from its JSON.

    A field with a default may be missing: earlier documents of a version lack it. What is not a
    field is left alone: later ones have more.

    Args:
        kind: the dataclass.
        document: its JSON.
        place: where that stands, for the error.

    Raises:
        InputError: it is no object, or a field is missing or of another type.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{place}: {_said(document)}, expected an object")
    hints, values = get_type_hints(kind), {}
    for one in dataclasses.fields(kind):
        if one.name in document:
            values[one.name] = read_value(
                hints[one.name], document[one.name], f"{place}.{one.name}"
            )
        elif (one.default, one.default_factory) == (dataclasses.MISSING, dataclasses.MISSING):
            raise InputError(f"{place}: {one.name!r} is missing")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{place}: {error}") from error


def read_value(kind: Any, value: Any, place: str) -> Any:
    """Return a value of JSON as one of the type `kind`; raises as `read_record` does."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(parts, value, place)
    if dataclasses.is_dataclass(kind):
        return read_record(kind, value, place)  # type: ignore[arg-type]
    if origin is Literal:
        if any(value is part or (value == part and type(value) is type(part)) for part in parts):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):
                return float(value)
        if isinstance(value, str) and value in _NOT_FINITE:
            return float(value)
    elif origin is tuple or kind is tuple:
        if isinstance(value, list):
            return _tuple(parts, value, place)
    elif origin in (list, Sequence):
        if isinstance(value, list):
            return [read_value(parts[0], one, f"{place}[{i}]") for i, one in enumerate(value)]
    elif origin in (dict, Mapping) or kind in (dict, Mapping):
        if isinstance(value, dict):
            inner = parts[1] if parts else Any
            return {k: read_value(inner, one, f"{place}.{k}") for k, one in value.items()}
    elif kind is type(None):
        if value is None:
            return None
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise InputError(f"{place}: {_said(value)}, expected {name.replace('typing.', '')}")


def _one_of(kinds: Sequence[Any], value: Any, place: str) -> Any:
    problem: InputError | None = None
    for kind in kinds:
        try:
            return read_value(kind, value, place)
        except InputError as error:
            problem = error if problem is None else problem
    assert problem is not None
    raise problem


def _tuple(parts: Sequence[Any], value: list[Any], place: str) -> tuple[Any, ...]:
    if not parts:
        return tuple(value)
    if parts[-1] is Ellipsis:
        kinds: Sequence[Any] = [parts[0]] * len(value)
    elif len(parts) != len(value):
        raise InputError(f"{place}: {len(value)} items, expected {len(parts)}")
    else:
        kinds = parts
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(read_value(kind, one, f"{place}[{i}]") for i, (kind, one) in pairs)


def _said(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:40]}..."
