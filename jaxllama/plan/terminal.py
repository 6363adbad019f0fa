"""A plan on a terminal."""

from __future__ import annotations

from rich.console import Console

from jaxllama.command_line.console import SafeTable
from jaxllama.command_line.layout import make_table, print_table, say, with_verdict
from jaxllama.memory import size_in_words
from jaxllama.plan.devices import Accelerator
from jaxllama.plan.request import MOST_DEVICES, PlanRequest
from jaxllama.plan.result import MeshPlan, PlanResult, prefill_seconds, step_seconds
from jaxllama.sharding.mesh import mesh_in_words


def show(result: PlanResult, console: Console) -> None:
    """Print a plan; what fits comes first, and last where a terminal is filled.

    Args:
        result: the plan.
        console: where to.
    """
    verdict = _verdict(result)
    if verdict:
        with_verdict(console, verdict, lambda: _show(result, console))
    else:
        _show(result, console)


def _show(result: PlanResult, console: Console) -> None:
    request = result.request
    held = request.dtype.name if request.quant is None else request.quant.name
    model = f"{request.model}: batch {request.batch}, context {request.context} tokens"
    say(console, [f"{model}, weights {held}, cache {request.cache_dtype.name}"])
    shown = {"": result.given, "cheapest": result.cheapest}
    if result.given is not None and result.cheapest == result.given:
        shown = {"": result.given}
    columns = {title: one for title, one in shown.items() if one is not None}
    if columns:
        print_table(console, _table(request, columns))
    say(console, (f"note: {note}" for note in result.notes))


def _table(request: PlanRequest, columns: dict[str, MeshPlan]) -> SafeTable:
    table = make_table("on each device", gap=2, frame=None)
    table.add_column("")
    for title, one in columns.items():
        name = mesh_in_words(one.sizes)
        table.add_column(f"{title}: {name}" if title else name, justify="right")
    rows = [_cells(request, one) for one in columns.values()]
    for label in rows[0]:
        table.add_row(label, *(cells[label] for cells in rows))
    return table


def _cells(request: PlanRequest, one: MeshPlan) -> dict[str, str]:
    share, measured = one.share, one.measured
    about = "about " if measured.widened else ""
    peak, plural = size_in_words(one.peak), "s" * (share.rows > 1)
    cells = {
        "weights": size_in_words(share.weights),
        "cache": f"{size_in_words(share.cache)}, {share.rows} row{plural}",
        "activations (prefill)": about + size_in_words(measured.activations),
        "temporaries (a step)": about + size_in_words(measured.temporaries),
        "peak": f"{size_in_words(one.least_peak)} to {peak}" if measured.widened else peak,
        "compiler": measured.compiler,
    }
    if request.device is not None:
        cells |= _floors(request, one, request.device)
    return cells


def _floors(request: PlanRequest, one: MeshPlan, device: Accelerator) -> dict[str, str]:
    step = step_seconds(one.share, device)
    prefill = prefill_seconds(one.share, device)
    tokens = request.batch * request.context
    fits = {True: "yes", False: "no", None: "perhaps"}[one.fits(device)]
    return {
        f"fits {device.name}": fits,
        "a step takes at least": f"{1000 * step:.3g} ms",
        "so writes at most": f"{request.batch / step:,.0f} tokens/s",
        "prefill takes at least": f"{prefill:.3g} s",
        "so reads at most": f"{tokens / prefill:,.0f} tokens/s",
    }


def _verdict(result: PlanResult) -> str:
    device = result.request.device
    if device is None:
        return ""
    if result.cheapest is not None:
        count, mesh = result.cheapest.devices, mesh_in_words(result.cheapest.sizes)
        which = (
            "fits, and cheaper ones were not all tried" if result.gave_up else "cheapest that fits"
        )
        return f"{which}: {count} x {device.name}, --mesh {mesh}"
    if result.gave_up:
        return (
            f"no mesh that fits was found in {result.tried} tries; give fewer rows or tokens, or "
            "a smaller chunk"
        )
    return f"no mesh of up to {MOST_DEVICES} {device.name} fits; give fewer rows or tokens"
