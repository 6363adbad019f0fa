"""What `parity health` found, as plain data; the terminal, JSON and HTML only print it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.health.baseline import HealthComparison
from parity.health.figures import LayerSummary
from parity.health.groups import GroupComparison
from parity.health.metrics.gradients import GradientFigures
from parity.health.pictures import KeptPictures
from parity.health.rule import HealthFinding

# 1.0: first published.
SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class HealthReport:
    """Figures of a model, and what is the matter with them.

    Attributes:
        findings: the gravest first; with a baseline those that are new before all others.
        layers: figures of each.
        gradients: of each layer, None where none were taken; `gradient_tokens` of how many tokens.
        checkpoint: what was asked for.
        subject: who ran it; `dtype` in what.
        text: where the texts are from.
        rows: real tokens of each.
        mask: what may be seen, in words.
        loss, chance: mean cross-entropy of the texts, and of knowing nothing, nats a token.
        spectra: of the weights that were looked at, see `parity.health.weights`.
        comparison: with a baseline.
        groups: of two groups of texts.
        notes: remarks.
        environment: where it ran.
        texts: what each token of each row reads as.
        pictures: what is kept for a page; not in the document.
    """

    findings: list[HealthFinding]
    layers: list[LayerSummary]
    gradients: list[GradientFigures] | None
    gradient_tokens: int
    checkpoint: str
    subject: str
    dtype: str
    text: str
    rows: list[int]
    mask: str
    loss: float
    chance: float
    spectra: dict[str, float]
    comparison: HealthComparison | None
    groups: GroupComparison | None
    notes: list[str]
    environment: dict[str, Any]
    texts: list[list[str]]
    pictures: KeptPictures = field(default_factory=KeptPictures)

    def count(self, severity: str) -> int:
        """Return how many findings are so grave."""
        return sum(one.severity == severity for one in self.findings)

    @property
    def is_random(self) -> bool:
        """Whether the weights look random."""
        return any(one.rule == "random-weights" for one in self.findings)

    @property
    def verdict(self) -> str:
        """`faulty` where there is an error, `suspect` where there is a warning, else `healthy`."""
        if self.count("error"):
            return "faulty"
        return "suspect" if self.count("warning") else "healthy"

    @property
    def exit_code(self) -> int:
        """1 where there is an error, else 0."""
        return int(self.count("error") > 0)

    def said(self, words: Callable[[str], str]) -> HealthReport:
        """Return it with arguments in its notes as `words` says them: as options, on a terminal."""
        return dataclasses.replace(self, notes=[words(note) for note in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the versioned document, of JSON's types alone; what is no number is None."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "kind": "health",
            "verdict": self.verdict,
            "random_weights": self.is_random,
            "findings": self.findings,
            "comparison": self.comparison,
            "groups": self.groups,
            "checkpoint": self.checkpoint,
            "subject": self.subject,
            "dtype": self.dtype,
            "text": {"source": self.text, "rows": self.rows},
            "mask": self.mask,
            "loss": self.loss,
            "chance": self.chance,
            "layers": [
                {
                    "layer": number,
                    "heads": one.heads,
                    "states": one.states,
                    "rollout": one.rollout,
                    "gradients": self.gradients[number] if self.gradients else None,
                }
                for number, one in enumerate(self.layers)
            ],
            "gradient_tokens": self.gradient_tokens,
            "spectra": self.spectra,
            "notes": self.notes,
            "environment": self.environment,
        }
        return as_json(document)


def as_json(value: Any) -> Any:
    """Return a value as JSON's types alone; what is no number is None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def summary_line(report: HealthReport) -> str:
    """Return the first line that is printed."""
    counts = [
        f"{count} {name}{'s' * (count != 1 and name != 'information')}"
        for name in ("error", "warning")
        if (count := report.count(name))
    ]
    said = ", ".join(counts) or "no errors, no warnings"
    tokens = sum(report.rows)
    texts = "1 text" if len(report.rows) == 1 else f"{len(report.rows)} texts"
    random = ", random weights" if report.is_random else ""
    return (
        f"{report.verdict}: {said} in {report.checkpoint}{random} ({report.subject}, "
        f"{report.dtype}, {texts} of {tokens} tokens)"
    )
