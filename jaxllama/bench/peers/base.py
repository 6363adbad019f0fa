"""What a variant's module has to offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jaxllama.bench.measures import Measure

# Does a measure's work once; returns the seconds that count, and the new tokens of every row.
Run = Callable[[], tuple[float, list[list[int]]]]


class Peer(Protocol):
    """A model that is loaded, or the machine."""

    def prepare(self, measure: Measure) -> Run:
        """Return what does a measure's work; compiling is left to its first call."""
