"""What is asked of a stranger's program, and the answer, whatever the program does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from jaxllama.files import limits
from jaxllama.sandbox.templates import Refusal, compile_template, literal_texts

# What of a template's own words fits a line.
_LENGTH = 400


def answer(action: str, source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a template or a regular expression gives.

    Args:
        action: of a template `parse`, `literals` or `render`; of an expression `match`.
        source: of the program.
        variables: that a template is rendered with; of an expression the `text` that it is tried
            on, and whether it has to match the `whole`.

    Returns:
        `text` or `texts`; of a match its `groups`, the whole first, or None; `refused`, what a
        template says of the messages; `failed`, how it went wrong; or `beyond`, the limit that it
        does not keep. A `parse` that goes well gives an empty `text`.

    Raises:
        MemoryError: there is none left.
    """
    try:
        if len(source) > limits.TEMPLATE_CHARACTERS:
            return {
                "beyond": f"has {len(source)} characters, at most {limits.TEMPLATE_CHARACTERS} are "
                "accepted"
            }
        return _ACTIONS[action](source, variables)
    except Refusal as error:
        return {"refused": _words(error)}
    except MemoryError:
        raise
    except Exception as error:  # a template may fail in any way that Python can
        line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        said = _words(error)
        return {"failed": f"{line}{type(error).__name__}{': ' * bool(said)}{said}"}


def _words(error: Exception) -> str:
    """Return an error's message in one line; it may hold any object of the template's."""
    try:
        said = " ".join(str(error).split())
    except Exception:
        return "(its message cannot be shown)"
    return said if len(said) <= _LENGTH else f"{said[:_LENGTH]}..."


def _parse(source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    compile_template(source)
    return {"text": ""}


def _literals(source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    return {"texts": list(literal_texts(source))}


def _render(source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    parts, length = [], 0
    for part in compile_template(source).generate(variables):
        parts.append(part)
        length += len(part)
        if length > limits.RENDERED_CHARACTERS:
            return {"beyond": f"gives more than {limits.RENDERED_CHARACTERS} characters"}
    return {"text": "".join(parts)}


def _match(source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    match = re.fullmatch if variables.get("whole") else re.match
    found = match(source, variables["text"])
    return {"groups": None if found is None else [found.group(), *found.groups()]}


_ACTIONS: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]] = {
    "parse": _parse,
    "literals": _literals,
    "render": _render,
    "match": _match,
}
