"""The command line: `jaxllama info | convert | verify | generate | ...`.

Exit codes: 0 done or equal, 1 different and nothing else, 2 bad usage or bad input, 4 an internal
error or no memory, 130 interrupted.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxllama import compilation_cache
from jaxllama.cli_convert import convert
from jaxllama.cli_generate import generate
from jaxllama.command_line.group import command
from jaxllama.command_line.interrupt import on_interrupt

app = command(
    "jaxllama",
    about="Llama 3 in JAX.",
    exit_codes="0 done or equal, 1 different, 2 bad usage or input, 4 internal error or no "
    "memory, 130 Ctrl-C",
    no_cache=lambda off: compilation_cache.switch(off=off),
)
# Tensors that `verify` lists; of two unrelated checkpoints all differ.
MOST_DIFFERENCES = 20
_MOST_PROBLEMS = 10  # that `info` lists, those of one kind being one
_Source = Annotated[str, typer.Argument(help="Directory, GGUF file, tiny or smollm2.")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    app(arguments)


@app.command()
@on_interrupt()
def info(
    checkpoint: _Source,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is, and what is missing or odd."""
    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.checkpoint.info import describe
    from jaxllama.errors import summarise

    found = describe(open_checkpoint(checkpoint))
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        table = Table(show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")  # a long path has to be seen whole
        rows = {
            "checkpoint": found.path,
            "format": found.format,
            "family": found.family,
            "parameters": f"{found.parameters:,}",
            "bytes": f"{found.nbytes:,}",
            "dtypes": ", ".join(f"{name} {count:,}" for name, count in found.dtypes.items()),
            "tokenizer": found.tokenizer,
            **{name: str(value) for name, value in found.config.items()},
        }
        for name, value in rows.items():
            table.add_row(name, escape(value))
        for line in found.odd:
            table.add_row("odd", escape(line))
        for line in summarise(found.problems, _MOST_PROBLEMS):
            table.add_row("problem", escape(line))
        Console().print(table)
    if found.problems:
        raise typer.Exit(2)


@app.command()
@on_interrupt()
def verify(
    first: _Source,
    second: Annotated[str | None, typer.Argument(help="Another; or none with --manifest.")] = None,
    manifest: Annotated[
        bool,
        typer.Option(
            "--manifest/--no-manifest", help="Compare with the manifest written at conversion."
        ),
    ] = False,
) -> None:
    """Prove two checkpoints of any formats equal to the bit, or say what differs and why."""
    from jaxllama.checkpoint import check_manifest, open_checkpoint
    from jaxllama.checkpoint import verify as compare
    from jaxllama.errors import InputError

    if manifest == (second is not None):
        raise InputError("give two checkpoints, or one and --manifest")
    if second is None:
        check_manifest(open_checkpoint(first))
        print(f"equal: every tensor of {first} is as its manifest says")
        return
    result = compare(first, second)
    for note in result.notes:
        print(f"note: {note}")
    if result.equal:
        print(f"equal: {len(result.digests)} tensors, to the bit")
        return
    count = len(result.differences)
    total = len({*result.digests, *(found.name for found in result.differences)})
    print(f"different: {count} of {total} tensors" if count else "different: settings")
    # The configuration first: it may be why the tensors differ.
    for line in (*result.config, *result.differences[:MOST_DIFFERENCES]):
        print(f"  {line}")
    if count > MOST_DIFFERENCES:
        print(f"  and {count - MOST_DIFFERENCES} more tensors")
    raise typer.Exit(1)


app.command()(convert)
app.command()(generate)
