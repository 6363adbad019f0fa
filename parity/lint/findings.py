"""What a rule says when it fires: structured first, text and JSON from the same fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Place:
    """One cell or row of a mask, by array index; None where the axis does not matter."""

    row: int | None = None
    head: int | None = None
    query: int | None = None
    key: int | None = None

    def __str__(self) -> str:
        named = [f"{name} {value}" for name, value in asdict(self).items() if value is not None]
        return ", ".join(named) or "the whole mask"


@dataclass(frozen=True)
class Finding:
    """One fault of one mask.

    Attributes:
        rule: id such as M05.
        severity: an error changes what the model computes; a warning may.
        what: the fault, without figures.
        actual: the value found.
        expected: the value there should be.
        remedy: what to do next.
        place: where it was first seen.
        count: in how many places.
    """

    rule: str
    severity: Severity
    what: str
    actual: str
    expected: str
    remedy: str
    place: Place = field(default_factory=Place)
    count: int = 1

    @property
    def message(self) -> str:
        """The whole finding in one sentence."""
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return (
            f"{self.what}: {self.actual}, expected {self.expected} ({self.place}{more});"
            f" {self.remedy}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON's types, the message included."""
        place = {k: v for k, v in asdict(self.place).items() if v is not None}
        return {**asdict(self), "place": place, "message": self.message}


def places(
    wrong: np.ndarray, names: Sequence[str] = ("row", "head", "query", "key")
) -> tuple[Place, int]:
    """Return the first True of `wrong`, whose axes are named, and how many there are.

    An axis of size 1 called "head" stands for all heads and is not named.
    """
    found = np.argwhere(wrong)
    first = {
        name: int(value)
        for name, value, size in zip(names, found[0], wrong.shape, strict=True)
        if not (name == "head" and size == 1)
    }
    return Place(**first), len(found)
