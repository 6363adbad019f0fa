"""What a caller asks for in words: a choice among names, a configuration changed on purpose."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import DTypeLike

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import short_name
from jaxllama.errors import InputError, argument, meant

LANES = ("f64", "f32", "bf16")
# Told how far a long work is: what is done now, how many are done, of how many.
Progress = Callable[[str, int, int], None]


def choose(option: str, given: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """Split commas, expand `all`, refuse what is unknown; keep the order of `known`."""
    if not isinstance(given, Iterable):
        given = [str(given)]
    words = given.split(",") if isinstance(given, str) else list(given)
    wanted = set(known) if "all" in words else {word.strip() for word in words}
    unknown = sorted(wanted - set(known))
    if unknown or not wanted:
        named = ",".join(unknown)
        said = argument(option, named) if named else f"{argument(option)} (nothing)"
        guess = meant(unknown[0], known) if unknown else ""
        raise InputError(
            f"{said}: {guess}expected one or more of {', '.join(known)}, separated by commas, or "
            "all"
        )
    return tuple(word for word in known if word in wanted)


# One dtype or several, by any of its names, or None for all that there are.
Dtypes = str | Sequence[DTypeLike] | DTypeLike | None


def choose_dtypes(given: Dtypes) -> tuple[str, ...]:
    """Return the dtypes asked for by their short names, in the order of `LANES`.

    Raises:
        InputError: none, or another dtype.
    """
    if given is None or given == "all":
        return LANES
    words: Iterable[Any] = [given]
    if isinstance(given, str):
        words = given.split(",")
    elif isinstance(given, Iterable) and not isinstance(given, type):
        words = given
    return choose("dtypes", [lane_of(word) for word in words], LANES)


def lane_of(dtype: DTypeLike) -> str:
    """Return a dtype's short name; what is none is left as it is, to be refused by the caller."""
    word = dtype.strip() if isinstance(dtype, str) else dtype
    try:
        return short_name(word)
    except InputError:
        return getattr(word, "__name__", str(word))


def in_wider(dtype: str) -> str:
    """Return what to do about numbers that a dtype cannot hold; nothing where none is wider."""
    wider = {"bf16": "f32", "f32": "f64"}.get(dtype)
    return f"; run it with {argument('dtype', wider)}" if wider else ""


def checked_length(length: int | None, default: int, config: LlamaConfig) -> int:
    """Return tokens of a row: as many as asked for, or else the default where the context has them.

    Raises:
        InputError: more than the context has.
    """
    if length is None:
        return config.within_context(default)
    most = f"give at most {argument('length', config.max_position_embeddings)}"
    for problem in config.context_problems(length, argument("length"), most):
        raise InputError(problem)
    return length


# FIELD=VALUE texts, or the values by field; a field that has fields by one more mapping.
Overrides = Sequence[str] | Mapping[str, Any]


def override_texts(overrides: Overrides) -> tuple[str, ...]:
    """Return overrides of either form as texts, `FIELD=VALUE`."""
    if isinstance(overrides, str):
        return (overrides,)
    return tuple(_flat(overrides)) if isinstance(overrides, Mapping) else tuple(overrides)


def _flat(values: Mapping[str, Any], owner: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{owner}{name}.")
        else:
            yield f"{owner}{name}={value}"


def apply_overrides(config: LlamaConfig, assignments: Sequence[str]) -> LlamaConfig:
    """Return `config` with some fields changed.

    Args:
        config: the checkpoint's own.
        assignments: `rope_theta=1e6`, `rope_scaling.factor=32`, `rope_scaling=None`.

    Raises:
        InputError: not of that form, no such field, or a value of the wrong type.
        ConfigError: the changed configuration contradicts itself.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path or not text:
            raise InputError(
                f"{argument('overrides', assignment)}: expected FIELD=VALUE, as rope_theta=1e6"
            )
        config = _replace_field(config, path.strip().split("."), text.strip(), assignment)
    return config


def _replace_field(owner: Any, path: Sequence[str], text: str, assignment: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(owner)}
    name, rest = path[0], path[1:]
    if name not in fields:
        raise InputError(
            f"{argument('overrides', assignment)}: {type(owner).__name__} has no field {name!r}; "
            f"{meant(name, fields)}its fields are {', '.join(fields)}"
        )
    current = getattr(owner, name)
    if not rest:
        return dataclasses.replace(owner, **{name: _value(current, text, assignment)})
    if not dataclasses.is_dataclass(current):
        raise InputError(
            f"{argument('overrides', assignment)}: {name} is {current!r}, it has no fields"
        )
    return dataclasses.replace(owner, **{name: _replace_field(current, rest, text, assignment)})


def _value(current: Any, text: str, assignment: str) -> Any:
    literal = {"true": "True", "false": "False", "none": "None", "null": "None"}
    try:
        value = ast.literal_eval(literal.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    if value is None or current is None:
        return value
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(current):
        raise InputError(
            f"{argument('overrides', assignment)}: {text!r} is no {type(current).__name__}; "
            f"the field is {current!r} now"
        )
    return value
