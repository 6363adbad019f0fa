"""One HTML page of a run that needs nothing else: bars beside the floor, tables of all figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxllama.bench.measures import Measure
from jaxllama.bench.result import BenchResult
from jaxllama.bench.terminal import figure
from jaxllama.bench.variants import FLOOR, OURS, VARIANTS
from jaxllama.command_line.printable import spell_out
from jaxllama.memory import size_in_words


@dataclass(frozen=True)
class Bar:
    """One variant's speed at a measure, drawn.

    Attributes:
        name: the variant.
        at: its median, in per cent of the longest bar of the measure.
        low: its first quartile, likewise.
        high: its third.
        said: tokens a second in words, with quartiles.
        kind: `ours`, `floor` or empty.
    """

    name: str
    at: float
    low: float
    high: float
    said: str
    kind: str


@dataclass(frozen=True)
class Panel:
    """The bars of one measure.

    Attributes:
        measure: what is measured.
        title: in words.
        bars: the fastest first.
        rounds: of the measure.
    """

    measure: Measure
    title: str
    bars: list[Bar]
    rounds: int

    @property
    def spoken(self) -> str:
        """The bars in one sentence, for who does not see them."""
        return f"{self.title}: " + "; ".join(f"{bar.name} {bar.said}" for bar in self.bars)


def panels(result: BenchResult) -> list[Panel]:
    """Return the bars of all measures that have any."""
    found = []
    for measure in result.measures:
        speeds = {
            p.variant: speed
            for p in result.variants
            if p.dtype == measure.dtype and (speed := result.speed(measure, p.variant)) is not None
        }
        if not speeds:
            continue
        longest = max(speed.high for speed in speeds.values())
        bars = [
            Bar(
                name=name,
                at=round(100 * speed.median / longest, 2),
                low=round(100 * speed.low / longest, 2),
                high=round(100 * speed.high / longest, 2),
                said=f"{figure(speed.median)} tokens/s "
                f"({figure(speed.low)} to {figure(speed.high)})",
                kind={OURS: "ours", FLOOR: "floor"}.get(name, ""),
            )
            for name, speed in sorted(speeds.items(), key=lambda item: -item[1].median)
        ]
        rounds = min(speed.rounds for speed in speeds.values())
        found.append(Panel(measure, title_of(measure), bars, rounds))
    return found


def title_of(measure: Measure) -> str:
    """Return a measure in words."""
    if measure.kind == "prefill":
        return f"Prefill of {measure.prompt} tokens, {measure.dtype}"
    rows = "1 row" if measure.batch == 1 else f"{measure.batch} rows"
    return f"Decode, {rows}, {measure.dtype}"


def page(result: BenchResult) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("jaxllama.bench"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_spelled_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size_in_words, "figure": figure}
    ratios = result.ratios()
    return environment.get_template("bench.html").render(
        result=result,
        panels=panels(result),
        ratios=ratios,
        headline=headline(result),
        variants={p.variant: VARIANTS[p.variant].about for p in result.variants},
        costs=[p for p in result.variants if p.variant != FLOOR and p.peak_bytes is not None],
        spans=_span,
    )


def headline(result: BenchResult) -> list[tuple[str, str]]:
    """Return the few ratios that come first, each with what it is of."""
    wanted = {
        "prefill_512_vs_best_torch": "prefill 512 against the fastest PyTorch",
        "prefill_512_vs_floor": "of the floor of prefill 512",
        "decode_b1_vs_best_torch": "decode of one row against the fastest PyTorch",
        "decode_b1_vs_tunix": "decode of one row against Tunix",
        "decode_b1_vs_floor": "of the floor of decode, one row",
    }
    found = result.ratios()
    return [
        (f"{found[name].median:.0%}" if "floor" in name else f"{found[name].median:.2f}x", said)
        for name, said in wanted.items()
        if name in found
    ]


def _span(value: float | None, unit: str = "s") -> str:
    return "-" if value is None else f"{value:.1f} {unit}"


def _spelled_out(value: Any) -> Any:
    """Spell out what would turn or hide the text of a page."""
    return type(value)(spell_out(value)) if isinstance(value, str) else value
