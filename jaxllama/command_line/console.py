"""Tables, colours and bars on a terminal, of text that may be a stranger's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console
from rich.segment import Segment

from jaxllama.command_line.printable import spell_out
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
