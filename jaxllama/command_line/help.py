"""What `--help` prints: rich's panels where there is room for them, else plain lines."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.markup import escape

from jaxllama.command_line.streams import as_is

# Columns below which panels would clip names of options.
_NARROW = 60
_EXAMPLES = "Examples:"


def examples(*lines: str) -> str:
    """Return command lines as they stand at the end of a help."""
    return "\n".join([_EXAMPLES, *(f"  {line}" for line in lines)])


def prepare_help(command: Any) -> None:
    """Have a command show its help so; what is in brackets is text there, and no markup."""
    ending, command.epilog = command.epilog, None
    in_panels = command.format_help
    for parameter in command.params:
        parameter.help = escape(parameter.help or "")

    def format_help(ctx: Any, formatter: Any) -> None:
        width = shutil.get_terminal_size().columns
        # Its own control sequences are obeyed: none of it is a stranger's.
        with redirect_stdout(as_is(sys.stdout)):
            if width < _NARROW:
                print("\n".join(_plain(command, ctx, width)))
            else:
                in_panels(ctx, formatter)
            if ending:
                print("\n".join(_wrapped(ending, width)), end="\n\n")

    command.format_help = format_help


def _plain(command: Any, ctx: Any, width: int) -> Iterator[str]:
    yield from _wrapped(command.get_usage(ctx), width)
    yield ""
    yield from _wrapped(command.help or "", width)
    records = [r for p in command.get_params(ctx) if (r := _record(p, ctx)) is not None]
    subcommands = getattr(command, "commands", {})
    for title, rows in (
        ("Options", records),
        ("Commands", [(name, one.get_short_help_str(400)) for name, one in subcommands.items()]),
    ):
        if rows:
            yield from ("", f"{title}:")
        for name, about in rows:
            yield from _wrapped(f"  {name}", width)
            yield from _wrapped(f"    {about}", width)
    yield ""


def _record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """Return an option's or argument's name and help, None where it is hidden."""
    found: Sequence[str] | None = parameter.get_help_record(ctx)
    return None if found is None else (found[0], found[1].replace("\\[", "["))


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Yield lines of a text, which keep their indentation; a command line is left to be copied."""
    copied = text.startswith(_EXAMPLES)
    for line in text.splitlines():
        if copied and line.startswith(" "):
            yield line
            continue
        copied = copied and line == _EXAMPLES
        indent = " " * (len(line) - len(line.lstrip()))
        yield from textwrap.wrap(
            line.strip(),
            max(width - 1, 20),
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        ) or [""]
