"""What a notebook shows of a value: small pieces of HTML in the colours of its theme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from jaxllama.command_line.printable import one_line

# Characters of a cell.
_LONGEST = 400


def in_html(value: object) -> str:
    """Return a value's text as HTML: nothing in it is obeyed, whoever wrote it."""
    text = one_line(str(value))
    return escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def html_table(title: str, rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """Return a table of text; the first cell of a row is its heading."""
    lines = [f"<caption style='text-align:left;font-weight:600'>{in_html(title)}</caption>"]
    if head:
        cells = "".join(f"<th scope='col' style='text-align:left'>{in_html(h)}</th>" for h in head)
        lines.append(f"<tr>{cells}</tr>")
    for first, *others in rows:
        cells = "".join(f"<td style='text-align:left'>{in_html(cell)}</td>" for cell in others)
        heading = f"<th scope='row' style='text-align:left'>{in_html(first)}</th>"
        lines.append(f"<tr>{heading}{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"
