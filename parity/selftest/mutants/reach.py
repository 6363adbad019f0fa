"""Which lines of `jaxllama` run: an edit of another line changes nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jaxllama
from parity.selftest.mutants.rules import Mutant

_ROOT = str(Path(jaxllama.__file__).parent)

# File and line.
Line = tuple[str, int]


@contextmanager
def lines_run() -> Iterator[set[Line]]:
    """Collect the lines of `jaxllama` that run meanwhile."""
    found: set[Line] = set()

    def within(frame: FrameType, event: str, argument: Any) -> Any:
        found.add((frame.f_code.co_filename, frame.f_lineno))
        return within

    def entering(frame: FrameType, event: str, argument: Any) -> Any:
        return within if frame.f_code.co_filename.startswith(_ROOT) else None

    before = sys.gettrace()
    threading.settrace(entering)
    sys.settrace(entering)
    try:
        yield found
    finally:
        sys.settrace(before)
        threading.settrace(None)


def is_reached(mutant: Mutant, lines: Collection[Line]) -> bool:
    """Return whether any line of a mutant's statement runs."""
    path = sys.modules[mutant.module].__file__
    first, last = mutant.lines
    return any((path, line) in lines for line in range(first, last + 1))
