"""`parity quality`. Exit codes: 0, 1 where a condition of --fail-on is met, 2 bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.group import CHECKPOINT
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.errors import on_the_command_line
from jaxllama.files.output import write_text
from parity.commands import options
from parity.commands.progress import progress_bar
from parity.report import outputs


@on_interrupt()
def quality_command(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    data: Annotated[
        Path, typer.Option(help="JSON lines, each with a text, or with a prompt and a reference.")
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option(help="Given twice: what queries see before and after, as `causal()`."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The checkpoint before; CHECKPOINT is after.")
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="Quantise to this after: int8, int4 or int4:GROUP.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="f64, f32 or bf16.")] = "f32",
    length: Annotated[
        int | None, typer.Option(help="Most tokens given at once; 512 if not given.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="padded on the left, packed, or single: one row at a time.")
    ] = "padded",
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 1 if this is met: worse, different, bleu, 'perplexity>1%'; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    json_path: options.Json = None,
    html_path: options.Html = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="The verdict, and conditions of failing that are met.")
    ] = False,
) -> None:
    """Measure perplexity, BLEU, chrF and ROUGE, before and after a change, with intervals."""
    from parity.lint.spec_text import parse_spec
    from parity.quality import terminal
    from parity.quality.run import measure_quality

    read = [checkpoint, *map(str, filter(None, (data, baseline)))]
    outputs.check_reports(json_path, html_path, None, inputs=read)
    specs = [parse_spec(one)[0] for one in mask or ()]
    compilation_cache.turn_on()
    with progress_bar() as progress:
        report = measure_quality(
            checkpoint,
            data,
            mask=specs,
            baseline=baseline,
            quant=quant,
            dtype=dtype,
            length=length,
            layout=layout,
            fail_on=fail_on or (),
            seed=seed,
            progress=progress,
        )
    report = report.said(on_the_command_line)
    terminal.show(report, SafeConsole(), quiet=quiet)
    with outputs.after_verdict():
        if json_path is not None:
            write_text(json_path, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
        if html_path is not None:
            from parity.quality import page

            page.write(report, html_path)
    raise typer.Exit(report.exit_code)
