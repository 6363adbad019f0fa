"""A plan, from the request to what is said."""

from __future__ import annotations

from collections.abc import Callable

from jaxllama.memory import size_in_words
from jaxllama.plan.devices import USABLE
from jaxllama.plan.memory import DeviceShare, abstract_sharding
from jaxllama.plan.process import CPU, measure
from jaxllama.plan.request import PlanRequest
from jaxllama.plan.result import MeshPlan, PlanResult
from jaxllama.plan.search import cheapest, share_of
from jaxllama.sharding.mesh import Sizes, mesh_in_words


def plan(request: PlanRequest, say: Callable[[str], None] = lambda line: None) -> PlanResult:
    """Return what a model takes, and the cheapest mesh of the device on which it fits.

    Nothing is loaded or allocated, and no device is used: programs are compiled from shapes, in a
    process of its own.

    Args:
        request: as `jaxllama.plan.check_plan` returns it.
        say: told what is being compiled.

    Raises:
        InputError: a compiler that is not there, or that fails.
    """
    known: dict[str, MeshPlan] = {}

    def plan_of(sizes: Sizes, share: DeviceShare) -> MeshPlan:
        name = mesh_in_words(sizes)
        if name not in known:
            known[name] = MeshPlan(sizes, share, measure(request, sizes))
        return known[name]

    given = None
    if request.mesh is not None:
        say(f"compiling for {mesh_in_words(request.mesh)}")
        given = plan_of(request.mesh, share_of(request, request.mesh))
    found, tried, gave_up = None, 0, False
    if request.device is not None:
        found, tried, gave_up = cheapest(request, request.device, plan_of, say)
        # The one that was asked for may be better than those that were tried.
        better = found is None or (given is not None and given.devices < found.devices)
        if given is not None and better and given.fits(request.device):
            found = given
    notes = _notes(request, given, [one for one in (given, found) if one is not None])
    return PlanResult(request, given, found, tried, gave_up, notes)


def _notes(request: PlanRequest, given: MeshPlan | None, shown: list[MeshPlan]) -> tuple[str, ...]:
    notes = []
    if given is not None:
        notes += abstract_sharding(request.config, given.sizes).notes
        split = given.sizes["data"] * given.sizes["fsdp"]
        if request.batch % split:
            notes.append(
                f"{request.batch} rows do not divide by data * fsdp = {split}: each device has "
                f"{given.share.rows}; a multiple of {split} would cut them, and the cache"
            )
    for one in shown:
        if one.sizes["fsdp"] > 1:
            more = one.share.weights_read - one.share.weights
            notes.append(
                f"{mesh_in_words(one.sizes)}: along fsdp each device is sent {size_in_words(more)} "
                "of weights in every step, which the floors leave out"
            )
    notes.append(
        f"prefill in calls of {request.chunk} tokens a row on a cache of {request.context}; "
        "layers are stacked and scanned, attention is that of the backend xla"
    )
    if request.quant is not None and any(one.measured.compiler == CPU for one in shown):
        notes.append(
            f"{request.quant.name}: weights as held and read; activations and temporaries those of "
            "the program with none in fewer bits"
        )
    for reason in {one.measured.note for one in shown if one.measured.note}:
        notes.append(f"the device's own compiler was not asked: {reason}")
    if any(one.measured.widened for one in shown):
        notes.append(
            "the CPU's compiler was asked, about the program in float32: peaks are from half of "
            "what it says to all of it and two copies of the cache, which a device's may make"
        )
    if request.device is not None:
        notes.append(
            f"{request.device.about}: {size_in_words(request.device.usable)} of "
            f"{size_in_words(int(request.device.memory))} count ({USABLE:.0%}); floors leave out "
            "what devices tell each other, and reach no device in full"
        )
    return tuple(dict.fromkeys(notes))
