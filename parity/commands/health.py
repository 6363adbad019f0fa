"""`parity health`. Exit codes: 0 without errors, 1 with one, 2 bad input."""

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
def health_command(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)] = "tiny",
    text: Annotated[
        Path | None,
        typer.Option(help="A text in UTF-8, or .jsonl with one a line; a built-in one if none."),
    ] = None,
    subject: Annotated[
        str, typer.Option(help="What runs: as for parity run, a directory of traces among them.")
    ] = "jaxllama",
    dtype: Annotated[str | None, typer.Option(help="f64, f32 or bf16; f32 if not given.")] = None,
    length: Annotated[
        int | None, typer.Option(help="Most tokens of a text; 512 if not given.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="What queries may see, as `causal() & window(128)`; else is leakage."),
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients/--no-gradients", help="Of the first 512 tokens.")
    ] = True,
    baseline: Annotated[
        str | None,
        typer.Option(help="Another checkpoint of the same shape; what changed comes first."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="A second file of texts: which heads attend to them otherwise."),
    ] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="Its lines belong to those of --text, one to one.")
    ] = False,
    token: Annotated[
        list[str] | None, typer.Option(help="Compare the weight on this token, too; repeatable.")
    ] = None,
    json_path: options.Json = None,
    html_path: options.Html = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Verdict, the gravest finding, and where to read more.")
    ] = False,
) -> None:
    """Measure a model by itself: collapse, sinks, leaks, gradients, by layer and head."""
    from parity.health import terminal
    from parity.health.run import check_health
    from parity.lint.spec_text import parse_spec

    read = [checkpoint, subject, *map(str, filter(None, (text, against, baseline)))]
    outputs.check_reports(json_path, html_path, None, inputs=read)
    spec = None if mask is None else parse_spec(mask)[0]
    compilation_cache.turn_on()
    with progress_bar() as progress:
        report = check_health(
            checkpoint,
            text=text,
            subject=subject,
            dtype=dtype,
            length=length,
            mask=spec,
            gradients=gradients,
            baseline=baseline,
            against=against,
            paired=paired,
            token=token or (),
            progress=progress,
        )
    report = report.said(on_the_command_line)
    terminal.show(report, SafeConsole(), quiet=quiet)
    with outputs.after_verdict():
        if json_path is not None:
            document = json.dumps(report.to_dict(), indent=1, allow_nan=False)
            write_text(json_path, document + "\n")
        if html_path is not None:
            from parity.health import page

            page.write(report, html_path)
    raise typer.Exit(report.exit_code)
