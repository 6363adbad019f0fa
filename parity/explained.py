"""What a search for causes found, as reports have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from parity.causes.base import Hypothesis, catalogue
from parity.causes.wrong import WrongReference
from parity.examine import Finding
from parity.inputs import Inputs
from parity.result import TapRow


@dataclass(frozen=True)
class Step:
    """One cause on the way to agreement.

    Attributes:
        hypothesis: what was put into the reference.
        tap: where they parted.
        before, after: its error.
        left: its error on the subject's own inputs; 0 where only a whole run shows it.
    """

    hypothesis: Hypothesis
    tap: str
    before: float
    after: float
    left: float


@dataclass(frozen=True)
class Search:
    """The way from the reference to one that agrees with the subject, as far as it went.

    Attributes:
        start, end: where the subject parted from the reference, and from what became of that.
        steps: the causes found.
        suspects: what was proposed at the end, with the error that each leaves.
        reference, inputs: wrong in all these ways.
        untried: proposals that there was no time for.
    """

    start: Finding
    end: Finding
    steps: tuple[Step, ...]
    suspects: tuple[tuple[Hypothesis, float], ...]
    reference: WrongReference
    inputs: Inputs
    untried: int

    def then(self, later: Search) -> Search:
        """Return this search and one that went on from its end."""
        start = later.start if self.start.first is None else self.start
        return replace(later, start=start, steps=(*self.steps, *later.steps))


def described(search: Search) -> dict[str, Any] | None:
    """Return a search as `parity.result.Result.cause` has it; None where nothing differed."""
    start, end, steps = search.start, search.end, _merged(search.steps)
    if start.first is None:
        return None
    agrees = end.first is None
    evidence = [_line(step) for step in steps]
    if agrees:
        evidence.append("so changed, the reference agrees with the subject in every tap")
    else:
        assert end.first is not None
        evidence.append(f"unexplained: {end.first.tap}, error {end.first.error:.1e}")
    if search.untried and not agrees:
        evidence.append(f"time ran out: {search.untried} hypotheses were not tried")
    listed = [] if agrees else _suspects(search.suspects)
    if not steps:
        return {
            "id": "",
            "title": "unexplained",
            "summary": f"unexplained: no known cause makes {start.first.tap} what it is",
            "confirmed": False,
            "evidence": evidence,
            "effective": "",
            "configured": "",
            "remedy": "",
            "experiments": [],
            "suspects": listed,
            "others": [],
        }
    named = [_named(step) for step in steps]
    return {
        **named[0],
        "confirmed": agrees,
        "evidence": evidence,
        "experiments": [
            {"changed": s.hypothesis.said, "tap": s.tap, "before": s.before, "after": s.after}
            for s in steps
        ],
        "suspects": listed,
        "others": named[1:],
    }


def described_precision(row: TapRow) -> dict[str, Any]:
    """Return why products with a single term are off, as `described` does.

    Args:
        row: of `parity.noise.one_hot.probe_products`; its facts are the experiments.
    """
    cause = catalogue()["matmul-precision"].cause
    left, name = min((left, n.removeprefix("as_")) for n, left in row.facts.items())
    found = left <= row.limit
    bits = max(1, round(23 - math.log2(row.rho))) if math.isfinite(row.rho) else 0
    said = f"factors in {name}" if found else f"{bits} bits"
    tried = {"changed": f"factors in {name}", "tap": row.tap}
    before, after = row.error, left * row.noise
    line = f"{tried['changed']} on the reference: error at {row.tap} {before:.1e} -> {after:.0e}"
    return {
        "id": cause.id,
        "title": cause.title,
        "summary": f"{cause.title} ({said}); effective {said.split()[-1] if found else said}, "
        "configured float32",
        "confirmed": found,
        "evidence": ["products of a single term, which no order of summation changes", line],
        "effective": name if found else said,
        "configured": "float32",
        "remedy": cause.remedy,
        "experiments": [{**tried, "before": before, "after": after}],
        "suspects": [],
        "others": [],
    }


def _merged(steps: Sequence[Step]) -> list[Step]:
    """Say once what several layers have in common."""
    first: dict[str, Step] = {}
    for step in steps:
        first.setdefault(step.hypothesis.cause, step)
    return list(first.values())


def _named(step: Step) -> dict[str, Any]:
    hypothesis = step.hypothesis
    cause = catalogue()[hypothesis.cause].cause
    said = f"{cause.title} ({hypothesis.said})"
    if hypothesis.effective:
        said += f"; effective {hypothesis.effective}, configured {hypothesis.configured}"
    return {
        "id": cause.id,
        "title": cause.title,
        "summary": said,
        "effective": hypothesis.effective,
        "configured": hypothesis.configured,
        "remedy": cause.remedy,
    }


def _line(step: Step) -> str:
    said = f"{step.hypothesis.said} on the reference: error at {step.tap} {step.before:.1e} -> "
    if step.after < step.before or step.left >= step.before:
        line = f"{said}{step.after:.0e}"
    else:  # its values stand at ties, which a run's own rounding decides
        line = f"{said}{step.left:.0e} on the subject's own inputs"
    noise = step.hypothesis.noise
    return line + (f"; it rounds by up to {noise:.0e} itself" if noise else "")


def _suspects(ranked: Sequence[tuple[Hypothesis, float]]) -> list[dict[str, Any]]:
    return [
        {"id": hypothesis.cause, "summary": hypothesis.said, "error_left": left}
        for hypothesis, left in ranked[:5]
        if left > 0
    ]
