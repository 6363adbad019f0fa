"""What a notebook shows of a value: small pieces of HTML in the colours of its theme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from jaxllama.command_line.printable import one_line

# Characters of a cell.
_LONGEST = 400
# A picture of this class has the lightness of a notebook's dark theme: of Jupyter, VS Code, Colab,
# or of a page which a notebook was made into. What the system prefers is not asked: a notebook's
# theme is chosen apart from it.
PICTURE = "jaxllama-picture"
_DARK = ("[data-jp-theme-light=false]", ".vscode-dark", "[theme=dark]", "[data-theme=dark]")


def themed(html: str) -> str:
    """Return a piece of HTML whose pictures follow the notebook's theme."""
    pictures = ",".join(f"{theme} .{PICTURE}" for theme in _DARK)
    return f"<style>{pictures}{{filter:invert(1) hue-rotate(180deg)}}</style>{html}"


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
