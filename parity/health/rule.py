"""What a rule of health is, what it finds, and all of them."""

from __future__ import annotations

import importlib
import pkgutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, cast

import numpy as np

from parity.health import rules
from parity.health.figures import ModelFigures

# An error breaks what the model computes, a warning is likely to, information is no fault.
HealthSeverity = Literal["error", "warning", "information"]
SEVERITIES: tuple[HealthSeverity, ...] = ("error", "warning", "information")
# Where a threshold is from: a publication, the meaning of the figure, or our own measuring.
Basis = Literal["paper", "definition", "heuristic"]


@dataclass(frozen=True)
class HealthRule:
    """A rule, and its page.

    Attributes:
        id: such as `entropy-collapse`.
        rank: lower comes first, among findings as grave.
        severity: of all its findings.
        title: what is the matter.
        checks: what is looked at, with the threshold in words.
        why: why that matters.
        not_this: what looks alike and is something else.
        remedy: what to do.
        source: who measured or proposed the figure.
        basis: of the threshold.
    """

    id: str
    rank: int
    severity: HealthSeverity
    title: str
    checks: str
    why: str
    not_this: str
    remedy: str
    source: str
    basis: Basis

    def page(self) -> str:
        """Return the rule's page, as `parity explain` prints it."""
        sections = {
            "What is looked at": self.checks,
            "Why": self.why,
            "What it is not": self.not_this,
            "What to do": self.remedy,
            "Source": self.source,
        }
        lines = [f"# {self.id}: {self.title}", ""]
        lines.append(f"Severity: {self.severity}. The threshold: {self.basis}.")
        for title, text in sections.items():
            lines += ["", f"## {title}", "", textwrap.fill(text, 96, break_on_hyphens=False)]
        return "\n".join(lines) + "\n"

    def finding(
        self,
        message: str,
        *,
        value: float,
        threshold: float,
        layer: int | None = None,
        heads: Iterable[int] | np.ndarray = (),
    ) -> HealthFinding:
        """Return something that this rule has found; see `HealthFinding`."""
        return HealthFinding(
            rule=self.id,
            severity=self.severity,
            layer=layer,
            heads=tuple(int(head) for head in heads),
            value=float(value),
            threshold=float(threshold),
            basis=self.basis,
            source=self.source,
            message=message,
        )


@dataclass(frozen=True)
class HealthFinding:
    """Something found.

    Attributes:
        rule: id of the rule.
        severity: how grave.
        layer: where; None for the whole model.
        heads: which query heads; empty for the whole layer.
        value: the figure, the worst of these heads.
        threshold: what it was held to.
        basis, source: of the threshold.
        message: in words, place and figures included.
    """

    rule: str
    severity: HealthSeverity
    layer: int | None
    heads: tuple[int, ...]
    value: float
    threshold: float
    basis: Basis
    source: str
    message: str


class HealthRuleFile(Protocol):
    """What a file of `parity.health.rules` has."""

    RULE: HealthRule

    def find(self, model: ModelFigures) -> Iterator[HealthFinding]:
        """Yield what is the matter."""


@cache
def catalogue() -> dict[str, HealthRuleFile]:
    """Return the rules by id, in their order."""
    names = [module.name for module in pkgutil.iter_modules(rules.__path__)]
    files = [
        cast(HealthRuleFile, importlib.import_module(f"{rules.__name__}.{name}")) for name in names
    ]
    return {file.RULE.id: file for file in sorted(files, key=lambda file: file.RULE.rank)}


def find_all(model: ModelFigures) -> list[HealthFinding]:
    """Return what all rules find, the gravest first, then in the order of rules and layers."""
    found = [one for file in catalogue().values() for one in file.find(model)]
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


def heads_in_words(heads: Iterable[int] | np.ndarray) -> str:
    """Return heads as `head 3` or `heads 0-2, 5`."""
    return _in_words("head", heads)


def layers_in_words(layers: Iterable[int] | np.ndarray) -> str:
    """Return layers as `layer 3` or `layers 0-2, 5`."""
    return _in_words("layer", layers)


def _in_words(what: str, given: Iterable[int] | np.ndarray) -> str:
    numbers = sorted(int(number) for number in given)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"{what}{'s' * (len(numbers) != 1)} {said}"
