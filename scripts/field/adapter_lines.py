"""How long an adapter is."""

from __future__ import annotations

import ast


def lines_of(source: str) -> int:
    r"""Return how many lines of code there are: none that is blank, a comment or a docstring.

    >>> lines_of("'Says what.'\n\n# why\nx = 1\n")
    1
    """
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            prose |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = (line.strip() for n, line in enumerate(source.splitlines(), 1) if n not in prose)
    return sum(bool(line) and not line.startswith("#") for line in lines)
