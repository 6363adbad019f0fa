"""What a run has found, as data: the one source of table, JSON and page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxllama.bench.measures import Measure
from jaxllama.bench.ratios import Spread, single, speed_ratios, speeds, spread
from jaxllama.bench.variants import FLOOR, OURS, VARIANTS

SCHEMA_VERSION = 1
# What less is none: a first call is a little slower than a later one anywhere.
LEAST_COMPILE_SECONDS = 0.5


@dataclass
class Timing:
    """One variant at one measure.

    Attributes:
        seconds: of each round, in order.
        first_seconds: of the first call, compilation included; None of the machine's floor.
        usual_seconds: the same span of a later call.
        tokens: that were written, of all rows.
    """

    seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    usual_seconds: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def compile_seconds(self) -> float | None:
        """What a first call takes beyond a later one."""
        if self.first_seconds is None or not self.usual_seconds:
            return None
        return max(0.0, self.first_seconds - spread(self.usual_seconds).median)


@dataclass
class VariantResult:
    """One variant in one dtype.

    Attributes:
        variant: its name.
        dtype: `f32` or `bf16`.
        status: `measured`, `not installed` or `failed`.
        reason: why it was not measured, or no further.
        start_seconds: from the start of its process until the model was loaded.
        first_token_seconds: until the first token of the first prompt, compilation included.
        imported_bytes: memory once its framework was imported.
        loaded_bytes: the most until the model was loaded.
        peak_bytes: the most at all.
        timings: by measure's name.
    """

    variant: str
    dtype: str
    status: str = "measured"
    reason: str = ""
    start_seconds: float | None = None
    first_token_seconds: float | None = None
    imported_bytes: int | None = None
    loaded_bytes: int | None = None
    peak_bytes: int | None = None
    timings: dict[str, Timing] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, but what is told by measure."""
        said = {name: value for name, value in vars(self).items() if name != "timings"}
        return {"variant": self.variant, "about": VARIANTS[self.variant].about} | said


@dataclass
class BenchResult:
    """All of a run.

    Attributes:
        command: that gives it again.
        date: when it began, in ISO 8601.
        machine: see `jaxllama.bench.machine.describe`.
        checkpoint: its label, format, parameters and bytes by dtype.
        rounds: that were asked for.
        measures: in the order they were taken.
        work: operations (prefill) or bytes (decode) of a run, by measure's name.
        variants: in the order of the catalogue.
        not_run: measures that were not begun, with the reason.
        idle_share: of the processors' time, used by those that were not asked; None if unknown.
        seconds: of the whole run.
    """

    command: str
    date: str
    machine: dict[str, Any]
    checkpoint: dict[str, Any]
    rounds: int
    measures: list[Measure]
    work: dict[str, int]
    variants: list[VariantResult]
    not_run: dict[str, str] = field(default_factory=dict)
    idle_share: float | None = None
    seconds: float = 0.0

    def seconds_of(self) -> dict[str, dict[str, list[float]]]:
        """Return the seconds of each round, by measure's name and variant.

        Ours in float32, timed in the rounds of another dtype, has that dtype's name for its own.
        """
        return {
            measure.name: {
                one.variant if one.dtype == measure.dtype else one.dtype: one.timings[
                    measure.name
                ].seconds
                for one in self.variants
                if one.timings.get(measure.name) and one.timings[measure.name].seconds
            }
            for measure in self.measures
        }

    def speed(self, measure: Measure, variant: str) -> Spread | None:
        """Return tokens a second; None where there are none."""
        taken = self.seconds_of()[measure.name].get(variant)
        return speeds(taken, measure.tokens) if taken else None

    def of(self, variant: str, dtype: str) -> VariantResult | None:
        """Return one of those that were asked for."""
        found = (p for p in self.variants if (p.variant, p.dtype) == (variant, dtype))
        return next(found, None)

    def ratios(self) -> dict[str, Spread]:
        """Return all ratios by name, see `jaxllama.bench.ratios`."""
        found = speed_ratios(self.measures, self.seconds_of())
        for dtype in dict.fromkeys(measure.dtype for measure in self.measures):
            if (ours := self.of(OURS, dtype)) is not None:
                found |= self._once(ours, "" if dtype == "f32" else f"_{dtype}")
        return found

    def _once(self, ours: VariantResult, suffix: str) -> dict[str, Spread]:
        """Return the ratios of what is measured once: memory, compiling, the first token."""
        found: dict[str, Spread] = {}
        weights = self.checkpoint["bytes"][ours.dtype]
        if ours.loaded_bytes and ours.peak_bytes and ours.imported_bytes:
            found[f"load_memory{suffix}_vs_weights"] = single(
                weights, max(1, ours.loaded_bytes - ours.imported_bytes)
            )
            found[f"peak_memory{suffix}_vs_weights"] = single(weights, ours.peak_bytes)
        for other in self.variants:
            if other.dtype != ours.dtype or other.variant in (OURS, FLOOR):
                continue
            for name in ("peak_bytes", "first_token_seconds"):
                own, theirs = getattr(ours, name), getattr(other, name)
                said = {"peak_bytes": "peak_memory"}.get(name, "first_token")
                if own and theirs:
                    found[f"{said}{suffix}_vs_{other.variant}"] = single(theirs, own)
            for measure, timing in ours.timings.items():
                own = timing.compile_seconds
                theirs = (other.timings.get(measure) or Timing()).compile_seconds
                if own and theirs and theirs >= LEAST_COMPILE_SECONDS:
                    found[f"compile_{measure}_vs_{other.variant}"] = single(theirs, own)
        return found

    def notes(self) -> list[str]:
        """Return what a reader has to know besides the figures."""
        found = [
            f"{p.variant} ({p.dtype}): {p.status}{': ' * bool(p.reason)}{p.reason}"
            for p in self.variants
            if p.status != "measured"
        ]
        found += [f"{name}: not run: {why}" for name, why in self.not_run.items()]
        found += self._other_tokens()
        if self.idle_share is not None and self.idle_share > 0.02:
            found.append(
                f"processes that were not asked used {self.idle_share:.0%} of a processor meanwhile"
            )
        return found

    def _other_tokens(self) -> list[str]:
        """Say where another writes other tokens: in narrow dtypes near-ties fall otherwise."""
        found = []
        for theirs in self.variants:
            ours = self.of(OURS, theirs.dtype)
            if ours is None or theirs.variant in (OURS, FLOOR):
                continue
            for name, timing in theirs.timings.items():
                own = ours.timings.get(name)
                if own is None or not own.tokens or not timing.tokens:
                    continue
                alike, total = same_tokens(own.tokens, timing.tokens)
                if alike < total:
                    found.append(f"{name}: {theirs.variant} writes {alike} of {total} tokens as we")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` writes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "date": self.date,
            "seconds": self.seconds,
            "machine": self.machine,
            "checkpoint": self.checkpoint,
            "rounds": self.rounds,
            "ratios": {name: ratio.to_dict() for name, ratio in self.ratios().items()},
            "measures": [m.to_dict() | {"work": self.work[m.name]} for m in self.measures],
            "variants": [p.to_dict() for p in self.variants],
            "timings": [
                self._timing(measure, one)
                for measure in self.measures
                for one in self.variants
                if measure.name in one.timings
            ],
            "not_run": self.not_run,
            "idle_share": self.idle_share,
            "notes": self.notes(),
        }

    def _timing(self, measure: Measure, one: VariantResult) -> dict[str, Any]:
        timing = one.timings[measure.name]
        return {
            "measure": measure.name,
            "variant": one.variant,
            "dtype": one.dtype,
            "seconds": timing.seconds,
            "tokens_per_second": speeds(timing.seconds, measure.tokens).to_dict()
            if timing.seconds
            else None,
            "first_call_seconds": timing.first_seconds,
            "compile_seconds": timing.compile_seconds,
            "tokens": timing.tokens,
        }


def same_tokens(ours: list[list[int]], theirs: list[list[int]]) -> tuple[int, int]:
    """Return how many tokens are the same up to each row's first other one, and how many there are.

    >>> same_tokens([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 5, 6]])
    (4, 6)
    """
    alike = 0
    for own, other in zip(ours, theirs, strict=True):
        for a, b in zip(own, other, strict=True):
            if a != b:
                break
            alike += 1
    return alike, sum(map(len, ours))
