"""The `parity` command.

Exit codes: 0 equal, 1 divergent and nothing else, 2 bad usage or input, 3 inconclusive,
4 an internal error or no memory, 5 verdict printed but a report not written, 130 after Ctrl-C.
`jaxllama.command_group` and `jaxllama.process` see to those that are no verdict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxllama import compilation_cache
from jaxllama.command_group import CommandGroup
from jaxllama.errors import InputError
from jaxllama.interrupt import on_interrupt
from parity.lint.command import explain_command, lint_command
from parity.offline_commands import capture_command, compare_command, recheck_command
from parity.probes import probe_command
from parity.report.progress import progress_bar
from parity.selftest.command import selftest_command

app = typer.Typer(
    name="parity",
    cls=CommandGroup,
    help="Does a JAX Llama compute what PyTorch computes? Tensor by tensor, with the cause.",
    epilog="Exit codes: 0 equal, 1 divergent or faulty, 2 bad usage or input, 3 inconclusive, "
    "4 internal error or no memory, 5 verdict printed but a report not written, 130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _for_all(
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compile all anew, and keep nothing of it.")
    ] = False,
) -> None:
    compilation_cache.switch(off=no_cache)


@app.command("run")
@on_interrupt()
def run_command(
    checkpoint: Annotated[
        str, typer.Argument(help="Directory or file of a checkpoint, or: tiny, smollm2.")
    ] = "tiny",
    reference: Annotated[
        str, typer.Option(help="Witnesses: torch, hf, meta, several with commas, or all.")
    ] = "torch",
    dtype: Annotated[
        str | None,
        typer.Option(help="Dtypes: f64, f32, bf16, several with commas, or all, which is usual."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="free, isolated, decode, grad, several with commas, or all.")
    ] = "free,isolated",
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="Scenario to run; repeatable, commas allowed, or all."),
    ] = None,
    subject: Annotated[
        str,
        typer.Option(
            help="What is judged: jaxllama, an attention backend (xla, dot_product, cudnn), "
            "torch, hf, meta, a directory of traces, or module:name."
        ),
    ] = "jaxllama",
    override: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=VALUE: change the subject's configuration alone."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text in place of the built-in one.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token ids with commas, in place of text.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per row.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the whole result here.")
    ] = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", help="Write a report of one offline page here.")
    ] = None,
    junit_path: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML here, for a CI's test view.")
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Hold one layer at a time; f32 and bf16 unless told."),
    ] = False,
) -> None:
    """Run the same weights through JAX and PyTorch and compare every tensor."""
    from parity.report import outputs
    from parity.runner import DEFAULT_SCENARIOS, run

    outputs.check_outputs(json_path, html_path, junit_path, inputs=[checkpoint, subject])
    compilation_cache.turn_on()
    with progress_bar() as progress:
        result = run(
            checkpoint,
            reference=reference,
            dtypes=dtype,
            modes=mode,
            scenarios=",".join(scenario) if scenario else DEFAULT_SCENARIOS,
            overrides=override or (),
            prompt=_prompt(prompt, tokens),
            length=length,
            progress=progress,
            subject=subject,
            stream=stream,
        )
    outputs.publish(result, json=json_path, html=html_path, junit=junit_path)
    raise typer.Exit(result.exit_code)


def _prompt(text: str | None, tokens: str | None) -> str | list[int] | None:
    if tokens is None:
        return text
    if text is not None:
        raise InputError("--prompt and --tokens: give one of them")
    try:
        return [int(word) for word in tokens.split(",") if word.strip()]
    except ValueError:
        raise InputError(f"--tokens {tokens!r}: expected whole numbers with commas") from None


app.command("capture")(capture_command)
app.command("compare")(compare_command)
app.command("recheck")(recheck_command)
app.command("lint")(lint_command)
app.command("probe")(probe_command)
app.command("explain")(explain_command)
app.command("selftest")(selftest_command)


def main() -> None:
    """Run the command line and exit."""
    app()
