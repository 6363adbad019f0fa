"""Masks that a subject goes by, as names of rules."""

from __future__ import annotations

from parity.diagnose.edits.named import NamedEdits, Pattern


def seeing(*rules: str) -> tuple[NamedEdits, ...]:
    """Return what a cause calls some of `parity.diagnose.edits.visibility.RULES`."""
    return tuple(
        NamedEdits(
            "{edit}",
            (Pattern("visible", "mask", (rule,)),),
            "{edit}",
            "the scenario's mask",
            of="mask",
        )
        for rule in rules
    )
