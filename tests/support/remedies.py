"""What messages of both programs tell people to type, collected from their sources.

A command is what stands between backquotes and begins with a program or a class of transformers,
`pip install` with what follows, and an option that a message tells to give, add or leave out. What
only names the option that is at fault (`--shards 0: from 1 to 99`) is none, nor is a help text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from jaxllama.errors import argument, on_the_command_line

_QUOTED = re.compile(r"`([^`]+)`")
_PROGRAM = re.compile(
    r"(?:jaxllama|parity|hf|git|pip|python|mlx_lm\.convert|gunzip|tar)(?: |$)"
    r"|Auto\w+\.from_pretrained|\{\w+\.fetch_command"
)
_PIP = re.compile(r"pip install [^;)\x60]+")
# Calls whose texts are no messages: helps, and the examples in them, which test_help.py parses.
_NO_MESSAGES = "Option", "Argument", "_flag", "examples"
_OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z-]*")
_AT_FAULT = re.compile(r"--[a-z-]+")  # where a message begins with it


def collect(root: Path) -> dict[str, set[str]]:
    """Return the commands that messages say, by module (`hub/name.py`), as they are rendered.

    Args:
        root: of the repository; values that are not known before a run stand in braces.
    """
    found: dict[str, set[str]] = {}
    for package in ("jaxllama", "parity"):
        for path in sorted((root / package).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            said = set(commands_in(path.read_text()))
            if said:
                found[place] = said
    return found


def commands_in(source: str) -> Iterator[str]:
    """Yield the commands that the messages of one module say."""
    for text in _messages(ast.parse(source)):
        quoted = [one for one in _QUOTED.findall(text) if _PROGRAM.match(one)]
        yield from quoted
        rest = _QUOTED.sub("", text)
        rest = rest[found.end() :] if (found := _AT_FAULT.match(rest)) else rest
        pips = _PIP.findall(rest)
        yield from (one.strip() for one in pips)
        if not pips:
            yield from _OPTION.findall(rest)


def _messages(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of a module but its docstrings, help texts and parts of other texts."""
    left: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left.add(id(node.value))
        if isinstance(node, ast.Call) and _name(node.func) in _NO_MESSAGES:
            left.update(map(id, ast.walk(node)))
        if isinstance(node, ast.JoinedStr):
            left.update(id(part) for part in ast.walk(node) if part is not node)
    for node in ast.walk(tree):
        if id(node) in left:
            continue
        if isinstance(node, ast.JoinedStr):
            yield on_the_command_line("".join(map(_rendered, node.values)))
        elif isinstance(node, ast.Constant) and " " in str(node.value).strip():
            yield str(node.value)  # a name by itself is no message


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _rendered(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    call = part.value
    if isinstance(call, ast.Call) and _name(call.func) == "argument":
        first, *value = call.args
        name = first.value if isinstance(first, ast.Constant) else ""  # of one that is at fault
        return argument(name) + " {value}" * bool(value)
    return "{" + ast.unparse(call) + "}"
