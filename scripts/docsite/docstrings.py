"""Docstrings for Sphinx: fields that share a line of a section become a line each."""

from __future__ import annotations

import re
from typing import Any

_SHARED = re.compile(r"^(\s+)(\w+(?:, \w+)+): ")


def apart(lines: list[str]) -> list[str]:
    """Return a docstring whose shared fields stand alone.

    >>> apart(["Args:", "    low, high: ends of", "        the scale.", "    log: whether."])
    ['Args:', '    low: ends of', '        the scale.', '    high: see `low`.', '    log: whether.']
    """
    found: list[str] = []
    waiting: list[str] = []
    for line in lines:
        shared = _SHARED.match(line)
        indent = len(line) - len(line.lstrip())
        if waiting and line.strip() and indent <= len(waiting[0]) - len(waiting[0].lstrip()):
            found, waiting = found + waiting, []
        if shared:
            first, *others = shared[2].split(", ")
            waiting = [f"{shared[1]}{other}: see `{first}`." for other in others]
            line = f"{shared[1]}{first}: {line[shared.end() :]}"
        found.append(line)
    return found + waiting


def _process(app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    lines[:] = apart(lines)


def readable(signature: str | None) -> str | None:
    """Return a signature that parses: an alias in a union is its name, an odd default `...`.

    >>> readable("(dtype: TypeAliasForwardRef('DTypeLike') | None = None, seen: list = <factory>)")
    '(dtype: DTypeLike | None = None, seen: list = ...)'
    """
    if signature is None:
        return None
    named = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature)
    return re.sub(r"<[^<>]*>", "...", named)


def _sign(app: Any, what: str, name: str, member: Any, options: Any, *said: str | None) -> Any:
    return tuple(map(readable, said))


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-signature", _sign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
