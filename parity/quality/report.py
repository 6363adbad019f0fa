"""What `parity quality` found, as plain data; the terminal, JSON and HTML only print it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parity.comparison.quality import QualityFigures
from parity.health.report import as_json
from parity.quality.bootstrap import CONFIDENCE, LEAST_EXAMPLES, RESAMPLES
from parity.quality.verdict import MeasuredChange, each_confidence, fails, overall

# 1.0: first published.
SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class WrittenText:
    """What was written after a prompt.

    Attributes:
        line: of the file.
        prompt, reference: from there.
        before, after: each model's text; `before` is None of one model alone.
    """

    line: int
    prompt: str
    reference: str
    before: str | None
    after: str


@dataclass(frozen=True)
class QualityChange:
    """Figures of a model, or of two, before and after a change.

    Attributes:
        measures: the perplexity, and those of texts where there are prompts.
        checkpoint: what was asked for.
        change: in words, what is otherwise after; "" of one model alone.
        figures: how far the distributions are apart; None of one model alone.
        data: the file; `examples`, `prompts` and `tokens` (those foretold) count what is in it.
        layout, dtype: in which the texts were run.
        length: most tokens that were given at once.
        seed: of the resamples.
        fail_on: conditions of failing.
        written: texts.
        notes: remarks.
        environment: where it ran.
    """

    measures: list[MeasuredChange]
    checkpoint: str
    change: str
    figures: QualityFigures | None
    data: str
    examples: int
    prompts: int
    tokens: int
    layout: str
    dtype: str
    length: int
    seed: int
    fail_on: tuple[str, ...]
    written: list[WrittenText]
    notes: list[str]
    environment: dict[str, Any]

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `mixed`, `no difference`, `too few examples`, or `measured`."""
        return overall(self.measures)

    @property
    def failed(self) -> list[str]:
        """The conditions of failing that are met."""
        return fails(self.measures, self.fail_on)

    @property
    def exit_code(self) -> int:
        """1 where a condition of failing is met, else 0."""
        return int(bool(self.failed))

    @property
    def each_confidence(self) -> float:
        """How often one interval holds."""
        return each_confidence(len(self.measures))

    def said(self, words: Callable[[str], str]) -> QualityChange:
        """Return it with arguments in its notes as `words` says them: as options, on a terminal."""
        return dataclasses.replace(self, notes=[words(note) for note in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the versioned document, of JSON's types alone; what is no number is None."""
        figures = self.figures
        apart = figures and {
            "kl_mean": figures.kl_mean,
            "kl_max": figures.kl_max,
            "top1_agreement": figures.top1_agreement,
        }
        return as_json(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "quality",
                "verdict": self.verdict,
                "failed": self.failed,
                "checkpoint": self.checkpoint,
                "change": self.change,
                "measures": self.measures,
                "distributions": apart,
                "bootstrap": {
                    "resamples": RESAMPLES,
                    "seed": self.seed,
                    "confidence": CONFIDENCE,
                    "each_confidence": self.each_confidence,
                    "least_examples": LEAST_EXAMPLES,
                },
                "data": {
                    "source": self.data,
                    "examples": self.examples,
                    "prompts": self.prompts,
                    "tokens": self.tokens,
                },
                "layout": self.layout,
                "dtype": self.dtype,
                "length": self.length,
                "fail_on": self.fail_on,
                "written": self.written,
                "notes": self.notes,
                "environment": self.environment,
            }
        )


def summary_line(report: QualityChange) -> str:
    """Return the first line that is printed."""
    count = f"{report.examples} example{'s' * (report.examples != 1)}"
    of = f"{count}, {report.tokens} tokens foretold, {report.dtype}, {report.layout}"
    if not report.change:
        return f"measured: {report.checkpoint} ({of})"
    moved = [one for one in report.measures if one.verdict in ("better", "worse")]
    said = "".join(f", {one.title} {one.before:.4g} -> {one.after:.4g}" for one in moved)
    return f"{report.verdict}: {report.checkpoint}, {report.change}{said} ({of})"
