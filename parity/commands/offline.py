"""`parity capture`, `parity compare`, `parity recheck`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.group import CHECKPOINT
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.streams import libraries_on_stderr
from parity.commands import options
from parity.result import Result


@on_interrupt()
def capture_command(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory to make.")],
    subject: Annotated[
        str, typer.Option(help="What is run; as for parity run: jaxllama, torch, hf, ...")
    ] = "jaxllama",
    dtype: Annotated[
        str | None,
        typer.Option(help="f64, f32, bf16, several with commas; all that there are if not given."),
    ] = None,
    mode: Annotated[str, typer.Option(help="free, decode, or both with a comma.")] = "free",
    scenario: options.Scenario = None,
    mesh: options.Mesh = None,
    hosts: options.Hosts = None,
    override: options.Override = None,
    prompt: options.Prompt = None,
    length: options.Length = None,
) -> None:
    """Save every tensor of one implementation, to be compared in another environment."""
    from jaxllama.sharding.hosts import several_hosts
    from parity.runner.capture import capture
    from parity.scenarios import DEFAULT_SCENARIOS

    with ExitStack() as joined:
        if hosts is not None:
            joined.enter_context(libraries_on_stderr())
            joined.enter_context(several_hosts(hosts))
        compilation_cache.turn_on()
        files = capture(
            checkpoint,
            out,
            subject=subject,
            mesh=mesh,
            dtypes=dtype,
            modes=mode,
            scenarios=",".join(scenario) if scenario else DEFAULT_SCENARIOS,
            overrides=override or (),
            prompt=prompt,
            length=length,
            warn=lambda said: print(f"note: {said}", file=sys.stderr),
        )
    if not files:  # the first process has them
        return
    size = sum(path.stat().st_size for path in files)
    count = "1 trace" if len(files) == 1 else f"{len(files)} traces"
    print(f"captured: {count}, {size / 1e6:.1f} MB, in {out}")


@on_interrupt()
def compare_command(
    subject: Annotated[Path, typer.Argument(help="Directory of the capture under judgement.")],
    reference: Annotated[Path, typer.Argument(help="Directory of the capture it is held to.")],
    json_path: options.Json = None,
    html_path: options.Html = None,
    junit_path: options.Junit = None,
    quiet: options.Quiet = False,
) -> None:
    """Judge one capture by another, without running a model; neither JAX nor PyTorch is used."""
    from parity.runner.compare_captures import compare

    traces = subject, reference
    _report(lambda: compare(*traces), json_path, html_path, junit_path, inputs=traces, quiet=quiet)


@on_interrupt()
def recheck_command(
    results: Annotated[Path, typer.Argument(help="What parity run --json wrote.")],
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Limit on rho: NUMBER, DTYPE=NUMBER or DTYPE.MODE=NUMBER; repeatable."),
    ] = None,
    json_path: options.Json = None,
    html_path: options.Html = None,
    junit_path: options.Junit = None,
    quiet: options.Quiet = False,
) -> None:
    """Judge saved figures again under other limits, without running a model."""
    from parity.runner.recheck import recheck

    judged = partial(recheck, results, limits=limit or ())
    _report(judged, json_path, html_path, junit_path, inputs=[results], quiet=quiet)


def _report(
    compare: Callable[[], Result],
    json_path: Path | None,
    html_path: Path | None,
    junit_path: Path | None,
    *,
    inputs: Sequence[Path],
    quiet: bool,
) -> None:
    """Judge, print and write, and leave with the verdict's exit code."""
    from parity.report import outputs

    outputs.check_reports(json_path, html_path, junit_path, inputs=inputs)
    result = compare()
    outputs.publish(result, json=json_path, html=html_path, junit=junit_path, quiet=quiet)
    raise typer.Exit(result.exit_code)
