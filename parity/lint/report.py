"""A lint report as text for people; JSON comes from the report itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxllama.masks import Tokens, explicit
from parity.lint.case import Case
from parity.lint.linter import LintReport


def in_lines(
    report: LintReport, case: Case, name: str, *, width: int | None = None, quiet: bool = False
) -> Iterator[str]:
    """Yield the verdict, every finding, a drawing, and what was not looked at.

    Args:
        report: of a mask.
        case: the mask.
        name: what it is called.
        width: columns that the drawing may take; as many as a drawing has at most if None.
        quiet: verdict and findings alone.
    """
    yield headline(report, case, name)
    yield from () if quiet else (f"note: {note}" for note in report.notes)
    for finding in report.findings:
        yield f"{finding.severity} {finding.rule}: {finding.message}"
    if quiet:
        return
    for rule_id, cause in report.explained.items():
        yield f"{rule_id} fired too, as a consequence of {cause}"
    if drawn := drawing(case, width):
        yield from ("", *drawn, "")
    if report.unchecked:
        yield "not checked, for want of"
        for want, rules in _by_want(report).items():
            yield f"  {want}: {', '.join(rules)}"


def headline(report: LintReport, case: Case, name: str) -> str:
    """Return the verdict and what it is of, in one line."""
    warnings = len(report.findings) - report.errors
    counts = [_count(report.errors, "error"), _count(warnings, "warning")]
    said = ", ".join(count for count in counts if count) or f"{len(report.checked)} rules agree"
    return f"{report.verdict}: {said} in {name} ({_described(case)})"


def drawing(case: Case, width: int | None = None) -> list[str]:
    """Return the mask drawn as its writer meant it, first head; empty if its shape is unclear."""
    if case.seen is None:
        return []
    batch, t, s = case.sizes
    seen = np.broadcast_to(case.seen[:, 0], (batch, t, s))
    q, k = case.tokens
    bound = explicit(seen).bind(Tokens(q.positions, q.valid), Tokens(k.positions, k.valid))
    return bound.draw(width).splitlines()[1:]  # the first says "explicit", which is no news


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number > 1 else ''}" if number else ""


def _described(case: Case) -> str:
    if case.mask is None:
        return f"spec {case.spec}"
    shape = " x ".join(map(str, case.mask.shape))
    meaning = {"bool": "bool", "zero_one": "0/1", "additive": "additive"}[case.reading.kind]
    taken = "added to the scores" if case.reading.use == "additive" else "taken as bool"
    return f"{shape} {case.mask.dtype}, {meaning} values, {taken}"


def _by_want(report: LintReport) -> dict[str, list[str]]:
    wants: dict[str, list[str]] = {}
    for rule_id, lacking in report.unchecked.items():
        wants.setdefault(" and ".join(lacking), []).append(rule_id)
    return wants
