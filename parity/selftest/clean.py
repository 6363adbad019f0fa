"""Runs that must not alarm: twins without a fault, compiled models, benign differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxllama.attention import Backend
from parity.selftest.bench import Benches, Judgement
from parity.selftest.fault import Fault
from parity.selftest.faults.controls import controls

# These have one shape, and so share their compiled operations.
MODELS = ("base", "plain", "linear", "tied", "seed8", "seed9")
OTHER_SHAPES = ("mqa", "square")
SCENARIOS = (
    "causal",
    "long_positions",
    "right_padded",
    "left_padded",
    "packed",
    "windowed",
    "mixed_lengths",
)
LANES = ("f64", "f32", "bf16")
DECODED = ("causal", "left_padded", "mixed_lengths", "packed", "windowed")


@dataclass(frozen=True)
class Clean:
    """One run without a fault.

    Attributes:
        kind: `clean twin`, `compiled`, `fused attention`, or a benign difference's.
        model, scenario, lane, mode: on what.
        control: the benign difference.
    """

    kind: str
    model: str
    scenario: str
    lane: str
    mode: str
    control: Fault | None = None

    def judge(self, benches: Benches) -> Judgement:
        """Run it."""
        bench = benches.bench(self.model, self.lane)
        if self.control is not None:
            return bench.inject(self.control)
        if self.kind == "clean twin":
            return bench.clean(self.scenario, self.mode)
        backend: Backend = "dot_product" if self.kind == "fused attention" else "xla"
        return bench.compiled(self.scenario, self.mode, backend)


def clean_runs(*, quick: bool = False) -> Iterator[Clean]:
    """Yield every clean run; the quick ones are a handful of each sort."""
    for lane in LANES:
        places = [(model, scenario) for model in MODELS for scenario in SCENARIOS]
        places += [(model, scenario) for model in OTHER_SHAPES for scenario in SCENARIOS[2:4]]
        for model, scenario in places[3:5] if quick else places:
            yield Clean("clean twin", model, scenario, lane, "free")
        places = [(model, scenario) for model in ("base", "tied") for scenario in DECODED]
        for model, scenario in places[2:3] if quick else places:
            yield Clean("clean twin", model, scenario, lane, "decode")
        for scenario in () if quick else ("left_padded", "right_padded"):
            yield Clean("compiled", "base", scenario, lane, "free")
            if lane != "f64":
                yield Clean("fused attention", "base", scenario, lane, "free")
    for control in controls()[:: 5 if quick else 1]:
        yield Clean(
            control.kind,
            control.model,
            control.scenario,
            control.lane,
            control.mode,
            control=control,
        )
