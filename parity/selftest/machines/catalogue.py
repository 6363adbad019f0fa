"""Which machines are imitated, and on which models and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from parity.selftest.machines.library import SCATTERED, UPWARDS
from parity.selftest.machines.subject import Machine
from parity.selftest.machines.sums import IN_LANES, ORDERS, blocks

# Keys in a block of fused attention.
KEYS = (64, 128)


@dataclass(frozen=True)
class Workload:
    """A model and its inputs, see `parity.selftest.models` and `Harness.inputs`.

    Attributes:
        model, scenario: by name.
        why: what about them makes the order of a sum matter.
        lanes: dtypes at which they are worth their time.
    """

    model: str
    scenario: str
    why: str
    lanes: tuple[str, ...] = ("f32", "bf16")


# A product of `massive`, `halves`, `smooth` and `alternating` has up to 1530 terms.
QUICK = (
    Workload("massive", "causal", "one input a thousand times the others"),
    Workload("halves", "causal", "terms positive, then negative"),
    Workload("smooth", "causal", "smooth weights with an offset"),
    Workload("alternating", "causal", "terms of alternating signs"),
    Workload("base", "left_padded", "ordinary weights, and pads"),
)
# Longer than a block of keys.
LONG = (
    Workload("base", "causal@139", "ordinary weights"),
    Workload("one_layer", "repeated@503", "equal terms"),
)
SLOW = (
    Workload("one_layer", "repeated@1900", "equal terms", ("f32",)),
    Workload("smollm2", "causal@37", "trained weights", ("f32",)),
    Workload("smollm2", "causal", "trained weights", ("bf16",)),
)
WORKLOADS = (*QUICK, *LONG, *SLOW)


def _machines() -> list[Machine]:
    found = []
    for fused in (False, True):
        how = ", fused" if fused else ""
        found += [Machine(f"summed {o.name}{how}", o, fused=fused) for o in ORDERS]
        found += [
            Machine(f"online softmax, {keys} keys{how}", IN_LANES, fused=fused, keys=keys)
            for keys in KEYS
        ]
    return [*found, *(Machine(one.name, library=one) for one in (SCATTERED, UPWARDS))]


MACHINES = {machine.name: machine for machine in _machines()}
# No honest machine: products are summed in float32, and every 64 terms' sum lies in bfloat16.
_ROUGH = Machine("partial sums in bfloat16", blocks(64, kept=torch.bfloat16))
UNFAIR = {_ROUGH.name: _ROUGH}


def selftest_machines() -> Iterator[tuple[Machine, Workload, str]]:
    """Yield every machine on some workloads at a dtype: all orders on what is quick.

    Two quick workloads take turns in float32, a third in bfloat16. Fused attention is for inputs
    longer than its blocks. What is slow sees the orders that stand furthest from PyTorch's.
    """
    for turn, machine in enumerate(MACHINES.values()):
        workloads = LONG if machine.keys else [QUICK[(turn + i) % len(QUICK)] for i in (0, 2)]
        yield from ((machine, workload, "f32") for workload in workloads)
        yield machine, workloads[0] if machine.keys else QUICK[(turn + 1) % len(QUICK)], "bf16"
    serial = MACHINES["summed serially"]
    yield from ((serial, workload, lane) for workload in (*LONG, *SLOW) for lane in workload.lanes)
    yield MACHINES["summed in 8 lanes"], QUICK[3], "f32"  # each lane has terms of one sign
    yield MACHINES["summed reversed"], LONG[1], "f32"


def everywhere(seed: int) -> Iterator[tuple[Machine, Workload, str]]:
    """Yield every machine on every workload at each of its dtypes, on models of a fresh seed.

    The unfair ones come with what is quick, in float32: rounding to bfloat16 would cover them.
    """
    for workload in WORKLOADS:
        model = workload.model if workload.model == "smollm2" else f"{workload.model}@{seed}"
        for lane in workload.lanes:
            heard = lane == "f32" and workload in QUICK
            for machine in [*MACHINES.values(), *(UNFAIR.values() if heard else ())]:
                yield machine, replace(workload, model=model), lane
