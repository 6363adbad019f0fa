"""Runs that must not alarm: twins without a fault, compiled, benign differences, machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxllama.attention import Backend
from parity.options import LANES
from parity.scenarios import SCENARIOS
from parity.selftest.benign import controls
from parity.selftest.fault import Fault
from parity.selftest.harness import Harnesses, Outcome
from parity.selftest.machines.catalogue import MACHINES, UNFAIR, everywhere, selftest_machines
from parity.subjects.torch_reference.model import Variant

# These have one shape, and so share their compiled operations.
MODELS = ("base", "plain", "linear", "tied", "seed8", "seed9")
OTHER_SHAPES = ("mqa", "square")
# Honest PyTorch that is no part of the noise: it has to keep the limits that noise sets.
VARIANTS: dict[str, Variant] = {"fused PyTorch": "sdpa", "PyTorch in a larger batch": "doubled"}
# Models of a calibration: heads, width and tying differ, scalings within a shape.
CALIBRATED = ("base", "plain", "tied", "mqa", "square")
DECODED = ("causal", "left_padded", "mixed_lengths", "packed", "windowed")
DIFFERENTIATED = ("base", "tied", "mqa")


@dataclass(frozen=True)
class CleanTask:
    """One run without a fault.

    Attributes:
        kind: `clean twin` (operation by operation), `compiled` (stage by stage, and scanned whole
            beside it), `fused attention`, one of `VARIANTS`, a machine's of
            `parity.selftest.machines`, or a benign difference's.
        model, scenario, lane, mode: on what.
        control: the benign difference.
    """

    kind: str
    model: str
    scenario: str
    lane: str
    mode: str
    control: Fault | None = None

    @property
    def fair(self) -> bool:
        """Whether it must not alarm; what is unfair is there to alarm."""
        return self.kind not in UNFAIR

    def check(self, harnesses: Harnesses) -> Outcome:
        """Run it."""
        harness = harnesses.harness(self.model, self.lane)
        if self.control is not None:
            return harness.check_fault(self.control)
        if machine := (MACHINES | UNFAIR).get(self.kind):
            return harness.check_imitated(machine, self.scenario, self.mode)
        if self.kind == "clean twin":
            return harness.check_clean(self.scenario, self.mode)
        if self.kind in VARIANTS:
            return harness.check_variant(self.scenario, self.mode, VARIANTS[self.kind])
        backend: Backend = "dot_product" if self.kind == "fused attention" else "xla"
        return harness.check_compiled(self.scenario, self.mode, backend)


def clean_runs(*, quick: bool = False) -> Iterator[CleanTask]:
    """Yield every clean run; the quick ones are a handful of each sort."""
    for lane in LANES:
        places = [(model, scenario) for model in MODELS for scenario in SCENARIOS]
        places += [(model, scenario) for model in OTHER_SHAPES for scenario in SCENARIOS[2:4]]
        for model, scenario in places[3:5] if quick else places:
            yield CleanTask("clean twin", model, scenario, lane, "free")
        places = [(model, scenario) for model in ("base", "tied") for scenario in DECODED]
        for model, scenario in places[2:3] if quick else places:
            yield CleanTask("clean twin", model, scenario, lane, "decode")
        places = [
            (model, scenario) for model in DIFFERENTIATED for scenario in ("packed", "causal")
        ]
        for model, scenario in () if lane == "bf16" else places[:1] if quick else places:
            yield CleanTask("clean twin", model, scenario, lane, "grad")
            yield CleanTask("compiled", model, scenario, lane, "grad")
        for scenario in () if quick else ("left_padded", "right_padded"):
            yield CleanTask("compiled", "base", scenario, lane, "free")
            if lane != "f64":
                yield CleanTask("fused attention", "base", scenario, lane, "free")
    imitated = list(selftest_machines())
    for machine, where, lane in imitated[:: len(imitated) // 3] if quick else imitated:
        yield CleanTask(machine.name, where.model, where.scenario, lane, "free")
    for kind in UNFAIR:
        yield CleanTask(kind, "massive", "causal", "f32", "free")
    for control in controls()[:: 5 if quick else 1]:
        yield CleanTask(
            control.kind,
            control.model,
            control.scenario,
            control.lane,
            control.mode,
            control=control,
        )


def calibration_runs(seeds: Sequence[int]) -> Iterator[CleanTask]:
    """Yield clean runs on models of fresh seeds, those of one harness together.

    Every model at every dtype goes through all scenarios compiled (and scanned whole), some of them
    operation by operation, through a cache, backwards, with fused attention, and as the PyTorch
    variants that measure no noise. Models of the first seed are run on all imitated machines.
    """
    for seed in seeds[:1]:
        for machine, where, lane in everywhere(seed):
            yield CleanTask(machine.name, where.model, where.scenario, lane, "free")
    for seed in seeds:
        for place, form in enumerate(CALIBRATED):
            model, turn = f"{form}@{seed}", seed + place
            scenarios = [SCENARIOS[(turn + i) % len(SCENARIOS)] for i in range(len(SCENARIOS))]
            for lane in LANES:
                yield from (CleanTask("compiled", model, s, lane, "free") for s in scenarios)
                yield CleanTask("clean twin", model, scenarios[0], lane, "free")
                yield from (
                    CleanTask(k, model, s, lane, "free")
                    for k, s in zip(VARIANTS, scenarios, strict=False)
                )
                if lane != "f64":
                    yield CleanTask("fused attention", model, scenarios[1], lane, "free")
                for i in range(2):
                    decoded = DECODED[(turn + i) % len(DECODED)]
                    yield CleanTask("compiled", model, decoded, lane, "decode")
                    if lane != "bf16":
                        yield CleanTask("compiled", model, scenarios[i], lane, "grad")
