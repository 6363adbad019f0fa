"""What a terminal of any width shows whole: lines, tables, and a verdict that does not leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich import box
from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxllama.command_line.console import SafeTable
from jaxllama.command_line.printable import one_line

# Characters that a column keeps whose cells may be folded.
_FOLDED = 8


def say(console: Console, lines: Iterable[str | Text], style: str | None = None) -> None:
    """Print lines; a terminal wraps them at words, but for a command, which is to be copied.

    In a file or a pipe they stay whole.
    """
    for line in lines:
        text = line if isinstance(line, Text) else Text(one_line(line))
        whole = not console.is_terminal or text.plain.startswith("again: ")
        if whole:
            console.print(text, style=style, soft_wrap=True, highlight=False)
            continue
        indent = len(text.plain) - len(text.plain.lstrip())
        body = Padding(text[indent:], (0, 0, 0, indent)) if indent else text
        console.print(body, style=style, highlight=False)


def verdict_line(line: str, style: str) -> Text:
    """Return a line whose first word, up to a colon, is in a style."""
    text = Text(one_line(line))
    text.stylize(style, 0, len(line.partition(":")[0]))
    return text


def with_verdict(console: Console, verdict: str | Text, body: Callable[[], None]) -> None:
    """Print a verdict and what `body` prints; again last, where that has filled a screen.

    A pipe has no screen.
    """
    if not console.is_terminal:
        say(console, [verdict])
        body()
        return
    with console.capture() as captured:
        say(console, [verdict])
        body()
    console.file.write(captured.get())
    lines = Text.from_ansi(captured.get()).wrap(console, console.width)
    if len(lines) >= console.height:
        say(console, [verdict])


def make_table(title: str = "", gap: int = 1, frame: Box | None = box.SIMPLE_HEAD) -> SafeTable:
    """Return an empty table of plain text.

    Args:
        title: above it.
        gap: spaces between columns, beside what the frame takes.
        frame: none for one without lines.
    """
    return SafeTable(
        title=title or None,
        title_justify="left",
        box=frame,
        padding=(0, gap, 0, 0),
        pad_edge=frame is not None,
    )


def print_table(console: Console, *tables: Table) -> None:
    """Print the first table that there is room for, and of none the last one's rows as lines."""
    console.print(_fitting(tables, console))


def fits(table: Table, console: Console, *, folded: bool = False) -> bool:
    """Return whether no cell is clipped, or, folded, none but those that may be folded."""
    room = console.options.update(max_width=10 * console.width)
    width = console.measure(table, options=room).maximum
    for column in table.columns if folded else ():
        if column.overflow == "fold":
            width -= max(0, max(len(str(cell)) for cell in column.cells) - _FOLDED)
    return width <= console.width


def _fitting(tables: tuple[Table, ...], console: Console) -> RenderableType:
    if found := [one for one in tables if fits(one, console)]:
        return found[0]
    last = tables[-1]
    return last if fits(last, console, folded=True) else _as_lines(last)


def _as_lines(table: Table) -> RenderableType:
    """Return a table's rows below each other, every figure behind its name."""
    columns = [
        (" ".join(str(c.header).split()), [str(cell) for cell in c.cells]) for c in table.columns
    ]
    lines = [Text(str(table.title))] if table.title else []
    for number in range(table.row_count):
        cells = [f"{name} {cells[number]}".strip() for name, cells in columns if cells[number]]
        lines.append(Text(f"- {', '.join(cells)}", style=table.rows[number].style or ""))
    if table.caption:
        lines.append(Text(str(table.caption)))
    return Group(*lines)
