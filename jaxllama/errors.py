"""What is raised on purpose: a message says both values, their place, and the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Options of the commands that have another name than the argument they become.
_OPTIONS = {
    "capacity": "cache-tokens",
    "dtypes": "dtype",
    "intended": "expect",
    "ids": "input-ids",
    "mitigations": "mitigation",
    "modes": "mode",
    "overrides": "override",
    "past": "cache-length",
    "scenarios": "scenario",
    "limits": "limit",
    "max_new_tokens": "max-tokens",
}
# Characters of a message's line, and of all: what a stranger's file says is not repeated whole.
_LONGEST_LINE, _LONGEST = 800, 6000
# A name, and perhaps its value as Python writes it and as a command line does.
_MARKED = re.compile("\x1a([^\x1a\x1f]*)(?:\x1f([^\x1a\x1f]*)\x1f([^\x1a]*))?\x1a")

# An end of line that is none of `join_problems`: of a name or a text in a file, which must not pass
# for a line of ours.
_LINE_END = re.compile(r"\r|\n(?!  - )")


def argument(name: str, value: object = None) -> str:
    """Return an argument for a message, which an error says as its asker would: `modes="grad"` in
    Python, `--mode grad` on the command line.

    Args:
        name: of the argument in Python.
        value: that it has, or ought to be given; True for a flag, None to name it alone.
    """
    return f"\x1a{name}\x1a" if value is None else f"\x1a{name}\x1f{value!r}\x1f{value}\x1a"


def in_python(text: str) -> str:
    """Return a text with its arguments as a caller of the library writes them."""
    return _MARKED.sub(_in_python, text)


def on_the_command_line(text: str) -> str:
    """Return a text with its arguments as options of the commands."""
    return _MARKED.sub(_on_the_command_line, text)


def _in_python(found: re.Match[str]) -> str:
    return found[1] if found[2] is None else f"{found[1]}={found[2]}"


def _spelled(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def _on_the_command_line(found: re.Match[str]) -> str:
    option = f"--{_OPTIONS.get(found[1], found[1].replace('_', '-'))}"
    return option if found[3] in (None, "True") else f"{option} {found[3]}"


def _short(message: str) -> str:
    """Return a message without the middle of lines that are too long, as of a value in it."""
    if len(message) <= _LONGEST_LINE:
        return message
    lines = (_cut(line, _LONGEST_LINE) for line in message.split("\n"))
    return _cut("\n".join(lines), _LONGEST)


def _cut(text: str, most: int) -> str:
    half = most // 2 - 5
    return text if len(text) <= most else f"{text[:half]} [...] {text[-half:]}"


class JaxLlamaError(Exception):
    """Base of every error this project raises on purpose; a command prints it and exits so.

    Args:
        message: what is wrong and what to do, in the words of the library's user; where it names an
            `argument`, the command line says the option.
        command: the same for who uses the command line, where more than that differs.

    Attributes:
        marked: the message as given, to be made part of another error's.
        command: the message for the command line.
    """

    exit_code = 2

    def __init__(self, message: str = "", *, command: str | None = None):
        message = _LINE_END.sub(_spelled, message)
        command = message if command is None else _LINE_END.sub(_spelled, command)
        super().__init__(_short(in_python(message)))
        self.marked = message
        self.command = _short(on_the_command_line(command))


class ConfigError(JaxLlamaError, ValueError):
    """A model configuration is contradictory, incomplete or not understood."""


class CheckpointError(JaxLlamaError, ValueError):
    """A checkpoint cannot be read, or does not hold what its configuration promises."""


class LimitError(CheckpointError):
    """A program in a file takes more than it may: nobody else may run it either."""


class InputError(JaxLlamaError, ValueError):
    """A prompt, mask, position, cache or option does not fit the model it is given to."""


class TrainingError(JaxLlamaError):
    """A training cannot go on: its loss is not finite, or what watches it has stopped it."""

    exit_code = 1


class ReportError(InputError):
    """A verdict has been printed, and what was to hold it besides could not be written."""

    exit_code = 5


def meant(name: str, known: Iterable[str]) -> str:
    """Return a guess at which known name was meant, to put into a message; empty without one."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""


# Lines of a message: more is not read, and hides the first.
_MOST_LINES = 12
# Problems of one kind of which each is said where there is room.
_ALIKE = 4
# What tells problems of one kind apart: whose they are, and the numbers and names in them.
_PARTICULARS = re.compile(r"^\S+(?=:)|'[^']*'|\([^()]*\)|\S*[\w]\.[\w]\S*|\d+")


def join_problems(title: str, problems: Sequence[str]) -> str:
    """Return one message for all `problems` of one thing, of at most a dozen lines.

    A single problem is one line with its title. Those that say the same of different things are one
    with their count, where they are more than four or there are more of all than lines.
    """
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    said = summarise(problems, _MOST_LINES - 1)
    return "\n".join([f"{title}: {len(problems)} problems", *(f"  - {p}" for p in said)])


def summarise(problems: Sequence[str], most: int) -> list[str]:
    """Return at most `most` lines for problems in the order of the first of each kind."""
    # A problem may be a message of several lines itself.
    flat = [" ".join(p.split("\n")) if "\n" in p else p for p in problems]
    kinds: dict[str, list[str]] = {}
    for problem in flat:
        kinds.setdefault(_PARTICULARS.sub("", problem), []).append(problem)
    if len(flat) <= most and max(map(len, kinds.values()), default=0) <= _ALIKE:
        return flat
    lines = [
        found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} more like it)"
        for found in kinds.values()
    ]
    if len(lines) <= most:
        return lines
    left = sum(len(found) for found in list(kinds.values())[most - 1 :])
    return [*lines[: most - 1], f"and {left} more"]
