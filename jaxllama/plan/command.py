"""`jaxllama plan`: the plan on stdout, what is being compiled on stderr."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.printable import one_line
from jaxllama.plan.devices import DEVICES


@on_interrupt()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A published model (8b, 70b, 405b, llama-3.2-1b, ...), or a checkpoint, of which "
            "the configuration alone is read."
        ),
    ],
    mesh: Annotated[
        str | None,
        typer.Option(help="Devices along each axis, fsdp=16,tensor=8; the cheapest if not given."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a row; the configuration's if not given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16, f16 or f32: weights and arithmetic.")] = "bf16",
    cache_dtype: Annotated[
        str | None, typer.Option(help="Of keys and values; --dtype if not given.")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="Weights as int8, int4 or int4:GROUP.")] = None,
    device: Annotated[
        str | None, typer.Option(help=f"On which it has to fit: {', '.join(DEVICES)}.")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a row that a call of prefill reads; at most 2048 if not given."
        ),
    ] = None,
    compiler: Annotated[
        str,
        typer.Option(help="Whose analysis: device (its own), cpu, or auto, the first if there."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet/--no-quiet", help="Say nothing of what is being done.")
    ] = False,
) -> None:
    """Say what a model takes on devices that need not be there, and whether it fits."""
    from jaxllama.plan.request import check_plan
    from jaxllama.plan.run import plan as run
    from jaxllama.plan.terminal import show

    request = check_plan(
        model,
        mesh=mesh,
        batch=batch,
        context=context,
        dtype=dtype,
        cache_dtype=cache_dtype,
        quant=quant,
        device=device,
        chunk=chunk,
        compiler=compiler,
    )

    def say(line: str) -> None:
        if not quiet:
            print(one_line(line), file=sys.stderr, flush=True)

    result = run(request, say)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        show(result, SafeConsole())
