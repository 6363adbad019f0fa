"""Masks as text: a picture of who sees whom, and the reason for one cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxllama.masks.bound import BoundMask


def draw(bound: BoundMask) -> str:
    """Return the mask drawn in text."""
    return repr(bound)


def explain(bound: BoundMask, q: int, k: int, row: int) -> str:
    """Return in words which parts of the rule show or hide one cell."""
    raise NotImplementedError
