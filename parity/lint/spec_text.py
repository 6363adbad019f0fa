"""Specs as text: `causal() & window(4)`, read without running anything."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from jaxllama import masks
from jaxllama.errors import InputError
from jaxllama.masks import Mask
from jaxllama.masks.specs import Window

_RULES: dict[str, Callable[..., Mask]] = {
    "causal": masks.causal,
    "padding": masks.padding,
    "segments": masks.segments,
    "window": masks.window,
    "prefix": masks.prefix,
    "chunked": masks.chunked,
    "index": masks.index,
}
# The longest written by hand has some hundred.
_CHARACTERS = 2000
_HINT = f"combine {', '.join(f'{name}(...)' for name in _RULES)} with &, |, ~"


def parse_spec(text: str) -> tuple[Mask, tuple[str, ...]]:
    """Return the rule a text stands for, and windows in it that hold no key.

    Such a window is a finding (W02), not a mistake in the command, so it becomes part of the rule.

    Raises:
        InputError: not a spec; nothing in the text is ever executed.
    """
    if len(text) > _CHARACTERS:
        raise InputError(
            f"spec {text[:60]!r}...: {len(text)} characters, at most {_CHARACTERS} are accepted"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        problems: list[str] = []
        return _build(tree, text, problems), tuple(problems)
    except InputError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"spec {text!r}: {error}; {_HINT}") from error


def _build(node: ast.expr, text: str, problems: list[str]) -> Mask:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        left, right = _build(node.left, text, problems), _build(node.right, text, problems)
        return left & right if isinstance(node.op, ast.BitAnd) else left | right
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_build(node.operand, text, problems)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RULES:
        try:
            values = [ast.literal_eval(argument) for argument in node.args]
            named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except ValueError as error:
            raise InputError(f"spec {text!r}: an argument is not a plain value; {_HINT}") from error
        return _call(node.func.id, values, named, text, problems)
    said = ast.unparse(node)
    raise InputError(f"spec {text!r}: `{said}` is not part of one; {_HINT}")


def _call(
    name: str, values: list[Any], named: dict[str, Any], text: str, problems: list[str]
) -> Mask:
    size = values[0] if values else named.get("window_keys")
    if name == "window" and type(size) is int and size < 1:
        problems.append(f"window({size})")
        return Window(size)
    try:
        return _RULES[name](*values, **named)
    except TypeError as error:
        raise InputError(f"spec {text!r}: {error}") from error
