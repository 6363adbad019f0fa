"""What a plan says: of one mesh, and which is the cheapest."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from jaxllama.plan.devices import Accelerator
from jaxllama.plan.memory import DeviceShare
from jaxllama.plan.process import MeasuredPrograms
from jaxllama.plan.request import PlanRequest
from jaxllama.sharding.mesh import Sizes, mesh_in_words

SCHEMA_VERSION = 1
# Of keys and values, which a device's compiler was seen to make where the CPU's makes none: a TPU
# v5p's has them twice more, in another order (docs/plan.md).
_COPIES = 2


@dataclass(frozen=True)
class MeshPlan:
    """What each device of a mesh holds and does.

    Attributes:
        sizes: devices along each axis.
        share: of weights, cache and work.
        measured: what the compiler says beside them.
    """

    sizes: Sizes
    share: DeviceShare
    measured: MeasuredPrograms

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.sizes.values())

    @property
    def peak(self) -> int:
        """Bytes of a device at most: prefill or a step, whichever takes more."""
        copies = _COPIES * self.share.cache_read if self.measured.widened else 0
        return self.share.weights + self.share.cache + self._made + copies

    @property
    def least_peak(self) -> int:
        """The same at least: all that was widened to be analysed may take half."""
        made = self._made // 2 if self.measured.widened else self._made
        return self.share.weights + self.share.cache + made

    @property
    def _made(self) -> int:
        return max(self.measured.activations, self.measured.temporaries)

    def fits(self, device: Accelerator) -> bool | None:
        """Whether it fits a device; None where only a device's own compiler could say."""
        if self.peak <= device.usable:
            return True
        return False if self.least_peak > device.usable else None


def step_seconds(share: DeviceShare, device: Accelerator) -> float:
    """Return the least time of a step of decoding with a full cache, in seconds.

    All weights and the cache are read once, and the products are made; devices' talk is not
    counted.
    """
    read = share.weights_read + share.cache_read
    return max(read / device.bandwidth, share.step_flops / device.flops)


def prefill_seconds(share: DeviceShare, device: Accelerator) -> float:
    """Return the least time of reading prompts as long as the context, in seconds."""
    return share.prefill_flops / device.flops


@dataclass(frozen=True)
class PlanResult:
    """A plan.

    Attributes:
        request: what was asked.
        given: of the mesh that was named; None if none was.
        cheapest: of the mesh with the fewest devices that fits; None if none does, or no device is
            named.
        tried: meshes that were compiled in search of it.
        gave_up: whether more could have been tried: cheaper ones, where one was found.
        notes: what is assumed, and what was left out.
    """

    request: PlanRequest
    given: MeshPlan | None
    cheapest: MeshPlan | None
    tried: int
    gave_up: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        request, device = self.request, self.request.device
        return {
            "schema_version": SCHEMA_VERSION,
            "model": request.model,
            "batch": request.batch,
            "context": request.context,
            "chunk": request.chunk,
            "dtype": request.dtype.name,
            "cache_dtype": request.cache_dtype.name,
            "quant": None if request.quant is None else request.quant.name,
            "device": None
            if device is None
            else {
                "name": device.name,
                "about": device.about,
                "memory": int(device.memory),
                "usable": device.usable,
                "bandwidth": device.bandwidth,
                "flops": device.flops,
            },
            "given": self._one(self.given),
            "cheapest": self._one(self.cheapest),
            "tried": self.tried,
            "gave_up": self.gave_up,
            "notes": list(self.notes),
        }

    def _one(self, found: MeshPlan | None) -> dict[str, Any] | None:
        if found is None:
            return None
        share, device = found.share, self.request.device
        said: dict[str, Any] = {
            "mesh": mesh_in_words(found.sizes),
            "devices": found.devices,
            "rows_per_device": share.rows,
            "bytes_per_device": {
                "weights": share.weights,
                "cache": share.cache,
                "activations": found.measured.activations,
                "temporaries": found.measured.temporaries,
                "peak": found.peak,
                "least_peak": found.least_peak,
            },
            "analysis": asdict(found.measured),
        }
        if device is None:
            return said
        step, prefill = step_seconds(share, device), prefill_seconds(share, device)
        return said | {
            "fits": found.fits(device),
            "floors": {
                "step_seconds": step,
                "prefill_seconds": prefill,
                "decode_tokens_per_second": self.request.batch / step,
                "prefill_tokens_per_second": self.request.batch * self.request.context / prefill,
            },
        }
