"""The cheapest mesh on which a model fits: the fewest devices, then the fastest step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from jaxllama.plan.devices import Accelerator
from jaxllama.plan.memory import DeviceShare, device_share
from jaxllama.plan.request import MOST_DEVICES, PlanRequest
from jaxllama.plan.result import MeshPlan, prefill_seconds, step_seconds
from jaxllama.sharding.layout import mesh_problems
from jaxllama.sharding.mesh import Sizes, mesh_in_words

# Of each two programs are compiled. Where none fits, the best of some larger numbers of devices.
MOST_TRIED, MOST_LARGER = 8, 4


def share_of(request: PlanRequest, sizes: Sizes) -> DeviceShare:
    """Return what a device of a mesh has of what is asked for."""
    return device_share(
        request.config,
        sizes,
        rows=request.batch,
        slots=request.context,
        dtype=request.dtype,
        cache_dtype=request.cache_dtype,
        quant=request.quant,
    )


def candidates(request: PlanRequest, device: Accelerator) -> list[tuple[Sizes, DeviceShare]]:
    """Return meshes on which weights and cache fit, the best first.

    Sizes are powers of two, of as many devices as can be had together; along `tensor` no more than
    share every product at full speed. Of one number of devices the mesh with the shortest step is
    best, then the one with the shortest prefill, then the one that puts the fewest weights
    together.

    Args:
        request: what is planned.
        device: on which.
    """
    found = []
    for sizes in _meshes(device.most_tensor):
        if device.slice_problem(math.prod(sizes.values())):
            continue
        if mesh_problems(sizes, request.config, "stacked"):
            continue
        share = share_of(request, sizes)
        if share.weights + share.cache < device.usable:
            found.append((sizes, share))

    def cost(one: tuple[Sizes, DeviceShare]) -> tuple[float, ...]:
        sizes, share = one
        count = math.prod(sizes.values())
        return count, step_seconds(share, device), prefill_seconds(share, device), sizes["fsdp"]

    return sorted(found, key=cost)


def cheapest(
    request: PlanRequest,
    device: Accelerator,
    plan_of: Callable[[Sizes, DeviceShare], MeshPlan],
    say: Callable[[str], None],
) -> tuple[MeshPlan | None, int, bool]:
    """Return the first candidate that fits with what its programs make on the way.

    Args:
        request: what is planned.
        device: on which.
        plan_of: compiles for a mesh.
        say: told of each that is tried.

    Returns:
        The plan of it, or None; how many were tried; and whether others were left that would be
        cheaper, or any if it is None.
    """
    known = candidates(request, device)
    first, larger = known[:MOST_TRIED], dict[int, tuple[Sizes, DeviceShare]]()
    for one in known[MOST_TRIED:]:
        if (count := math.prod(one[0].values())) > math.prod(first[-1][0].values()):
            larger.setdefault(count, one)
    asked = [*first, *list(larger.values())[:MOST_LARGER]]
    for tried, (sizes, share) in enumerate(asked, 1):
        say(f"compiling for {mesh_in_words(sizes)}")
        found = plan_of(sizes, share)
        if found.fits(device):
            return found, tried, known.index((sizes, share)) >= tried
    return None, len(asked), len(known) > len(asked)


def _meshes(most_tensor: int) -> Iterator[Sizes]:
    powers = [1 << k for k in range(MOST_DEVICES.bit_length())]
    for data in powers:
        for fsdp in powers:
            for tensor in powers:
                if tensor <= most_tensor and data * fsdp * tensor <= MOST_DEVICES:
                    yield {"data": data, "fsdp": fsdp, "tensor": tensor}
