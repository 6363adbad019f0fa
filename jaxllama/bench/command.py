"""`jaxllama bench`: tables on stdout, what is being done on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxllama.bench.variants import OURS, VARIANTS
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.failure import INTERNAL
from jaxllama.command_line.group import CHECKPOINT
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.printable import one_line

PROMPTS, BATCHES, NEW_TOKENS = "128,512,2048", "1,8", 16
ROUNDS = 5


@on_interrupt()
def bench(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)] = "smollm2",
    prompt: Annotated[
        str,
        typer.Option(
            help="Lengths of prompts to read, in tokens; those above 512 in the first dtype alone."
        ),
    ] = PROMPTS,
    batch: Annotated[str, typer.Option(help="Rows to write at once.")] = BATCHES,
    dtype: Annotated[
        str, typer.Option(help="f32 and bf16: of weights, arithmetic and cache.")
    ] = "f32,bf16",
    variants: Annotated[str, typer.Option(help=f"All, or some of {', '.join(VARIANTS)}.")] = "all",
    rounds: Annotated[
        int,
        typer.Option(
            help="Of each measure; after 20 s it ends early, but not before 5, or 3 of a prompt "
            "above 512 tokens."
        ),
    ] = ROUNDS,
    new_tokens: Annotated[
        int, typer.Option(help="Steps of writing that are timed, after a prompt of 128 tokens.")
    ] = NEW_TOKENS,
    threads: Annotated[
        int | None, typer.Option(help="Processors of each variant; all if not given.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="No measure begins after so many seconds.")
    ] = 540.0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="One prompt of at most 512 tokens, one batch, one dtype, 3 rounds."
        ),
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all figures here.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Draw them on one page.")] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet/--no-quiet", help="Say nothing of what is being done.")
    ] = False,
) -> None:
    """Time the model beside transformers, Tunix and what this machine could do at best."""
    from jaxllama.bench.page import page
    from jaxllama.bench.request import check_request
    from jaxllama.bench.run import bench as run
    from jaxllama.bench.terminal import show
    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.files.output import check_outputs, write_text

    check_outputs(json_path, html, inputs=[checkpoint])
    opened = open_checkpoint(checkpoint, quiet=quiet)
    if quick:
        prompt, batch, dtype = quick_of(prompt), batch.partition(",")[0], dtype.partition(",")[0]
        rounds = min(rounds, 3)
    request = check_request(
        checkpoint,
        opened,
        prompt=prompt,
        batch=batch,
        dtype=dtype,
        variants=variants,
        rounds=rounds,
        new_tokens=new_tokens,
        threads=threads,
        seconds=seconds,
    )

    def say(line: str) -> None:
        if not quiet:
            print(one_line(line), file=sys.stderr, flush=True)

    result = run(request, opened, say)
    show(result, SafeConsole())
    if json_path is not None:
        write_text(json_path, json.dumps(result.to_dict(), indent=1) + "\n")
    if html is not None:
        write_text(html, page(result))
    if any(one.status == "failed" for one in result.variants if one.variant == OURS):
        raise typer.Exit(INTERNAL)  # a note says why


def quick_of(prompt: str) -> str:
    """Return the longest prompt that a quick run takes; what is no list of numbers stays.

    >>> quick_of("128,512,2048"), quick_of("2048"), quick_of("x")
    ('512', '2048', 'x')
    """
    words = prompt.split(",")
    if not all(word.strip().isdigit() for word in words):
        return prompt
    numbers = sorted(int(word) for word in words)
    return str(([n for n in numbers if n <= 512] or numbers[:1])[-1])
