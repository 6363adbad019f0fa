"""What a terminal of a given size is shown."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from jaxllama.command_line.console import SafeConsole

Show = Callable[[Console], None]


def terminal_lines(show: Show, width: int, height: int = 500) -> list[str]:
    """Return the lines that are printed on a terminal of so many columns and lines."""
    console = SafeConsole(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    show(console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def unreadable(show: Show, width: int = 40) -> list[str]:
    """Return what a narrow terminal breaks: lines that are too long, figures that are not whole."""
    lines = [line for line in terminal_lines(show, width) if not line.startswith("again: ")]
    long = [f"{len(line)} columns: {line}" for line in lines if len(line) > width]
    text = " ".join(lines)
    whole = {word.strip("(),;:") for word in text.split()}
    figures = {
        word.strip("(),;:")
        for line in terminal_lines(show, 400)
        if not line.startswith("again: ")
        for word in line.split()
        if any(map(str.isdigit, word)) and len(word) < width // 2
    }
    return [*long, *(["…"] if "…" in text else []), *sorted(figures - whole)]


def check_verdict_last(show: Show) -> None:
    """Hold that the first line is the last one, too, where all of it has not fitted a screen."""
    low, high = (terminal_lines(show, 160, height) for height in (4, 500))
    assert low[0] == high[0] and low[-1] != high[-1], "said again"
    again = len(low) - len(high)
    assert low[-again:] == low[:again] and again >= 1
