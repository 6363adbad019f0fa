"""Tables, colours and bars on a terminal, of text that may be a stranger's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from jaxllama.command_line.printable import one_line, spell_out
from jaxllama.command_line.streams import as_is


class SafeConsole(Console):
    """A console whose own control sequences are obeyed, and none of what it is given."""

    def render(self, *given: Any, **named: Any) -> Iterable[Segment]:
        """Return segments, of which those of text are escaped."""
        for segment in super().render(*given, **named):
            yield segment if segment.control else segment._replace(text=spell_out(segment.text))

    @property
    def file(self) -> Any:
        """Return the stream, without the escapes that other writers to it get."""
        return as_is(super().file)

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream


class SafeTable(Table):
    """A table whose cells are plain text: no markup in them counts, and no line ends in them."""

    def add_row(self, *cells: Any, **named: Any) -> None:
        """Add a row; cells that are no strings stay as they are."""
        super().add_row(*(Text(one_line(c)) if isinstance(c, str) else c for c in cells), **named)
