"""A dataclass's annotations and docstring, as JSON Schema."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
STRINGS: Schema = {"type": "array", "items": STRING}
# JSON has no infinity and no NaN: one kind of document says them in words, others leave them out.
IN_WORDS: Schema = {"anyOf": [NUMBER, {"enum": ["nan", "inf", "-inf"]}]}
OR_NULL: Schema = {"type": ["number", "null"]}

_PLAIN: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: INTEGER,
    str: STRING,
    type(None): {"type": "null"},
    Any: {},
    np.ndarray: {"type": "array"},  # nested as its axes are
}


class Schemas:
    """Makes the schemas of one kind of document.

    Args:
        number: how the document says a float.
    """

    def __init__(self, number: Schema) -> None:
        self._plain = {**_PLAIN, float: number}

    def of(self, annotation: Any) -> Schema:
        """Return what values of a type look like.

        Raises:
            TypeError: nothing is known of the type.
        """
        if annotation in self._plain:
            return self._plain[annotation]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            return self.record(annotation)
        if (bound := getattr(annotation, "__value__", None)) is not None:  # `type X = ...`
            return self.of(bound)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.of(one) for one in arguments]}
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if isinstance(origin, type) and issubclass(origin, Sequence):
            if origin is tuple and Ellipsis not in arguments:
                count = len(arguments)
                items = [self.of(one) for one in arguments]
                return {"type": "array", "prefixItems": items, "minItems": count, "items": False}
            return {"type": "array", "items": self.of(arguments[0])}
        raise TypeError(f"no schema is known for {annotation!r}; say it in parity/schema")

    def record(
        self, kind: type, *, without: Sequence[str] = (), more: Mapping[str, Schema] | None = None
    ) -> Schema:
        """Return the schema of a dataclass as its fields are written out.

        Args:
            kind: the dataclass.
            without: fields that the document does not have.
            more: properties that it has beside them.
        """
        hints, said = get_type_hints(kind), descriptions(kind)
        found = {
            field.name: {**self.of(hints[field.name]), **said.get(field.name, {})}
            for field in dataclasses.fields(kind)
            if field.name not in without
        }
        return document({**found, **(more or {})})


def document(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """Return the schema of an object of known properties; more may come with a later version."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def descriptions(kind: type) -> dict[str, Schema]:
    """Return what a class's docstring says of its attributes."""
    lines = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {5,}.*)*)", lines, re.MULTILINE)
    return {
        name: {"description": " ".join(text.split())}
        for names, text in entries
        for name in names.split(", ")
    }


def strict(schema: Any) -> Any:
    """Return a schema under which a property that it does not name is a fault."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "required" in schema and "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def shape(schema: Any) -> Any:
    """Return a schema without its descriptions: what a version promises."""
    if isinstance(schema, list):
        return [shape(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: shape(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }
