"""What is raised on purpose: a message says both values, their place, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class JaxLlamaError(Exception):
    """Base of every error this project raises on purpose; a command prints it and exits so."""

    exit_code = 2


class ConfigError(JaxLlamaError, ValueError):
    """A model configuration is contradictory, incomplete or not understood."""


class CheckpointError(JaxLlamaError, ValueError):
    """A checkpoint cannot be read, or does not hold what its configuration promises."""


class InputError(JaxLlamaError, ValueError):
    """A prompt, mask, position, cache or option does not fit the model it is given to."""


class ReportError(InputError):
    """A verdict has been printed, and what was to hold it besides could not be written."""

    exit_code = 5


def meant(name: str, known: Iterable[str]) -> str:
    """Return a guess at which known name was meant, to put into a message; empty without one."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""


def join_problems(title: str, problems: Sequence[str]) -> str:
    """Return one message for all `problems` of one thing: a single line when there is only one."""
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    return "\n".join([f"{title}: {len(problems)} problems", *(f"  - {p}" for p in problems)])
