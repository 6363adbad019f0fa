"""`parity probe`: which mask a running attention obeys."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.layout import say, with_verdict
from jaxllama.files.output import check_writable, write_text
from parity.commands import options
from parity.report.outputs import after_verdict


@on_interrupt()
def probe_command(
    attention: Annotated[
        str,
        typer.Argument(help="xla, blockwise, dot_product, cudnn, splash, jax, or module:function."),
    ],
    dtype: Annotated[str | None, typer.Option(help="f16, bf16, f32 or f64.")] = None,
    json_path: options.JsonOrStdout = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="The verdict and the findings.")] = False,
) -> None:
    """Ask a running attention which mask it obeys, and compare with the mask it is given."""
    from parity.lint.attentions import resolve
    from parity.lint.linter import probe

    if json_path is not None and not options.is_stdout(json_path):
        check_writable(json_path)
    compilation_cache.turn_on()
    report = probe(resolve(attention, dtype))
    document = json.dumps(report.to_json(), indent=1)
    if options.is_stdout(json_path):
        typer.echo(document)
    else:
        console, (verdict, *lines) = SafeConsole(), report.text(quiet=quiet).splitlines()
        with_verdict(console, verdict, lambda: say(console, lines))
    if json_path is not None and not options.is_stdout(json_path):
        with after_verdict():
            write_text(json_path, document + "\n")
    if report.errors:
        raise typer.Exit(1)
