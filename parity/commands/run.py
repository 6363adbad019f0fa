"""`parity run`: the same weights through JAX and PyTorch, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.group import CHECKPOINT
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.errors import InputError
from parity.commands import options
from parity.commands.progress import progress_bar


@on_interrupt()
def run_command(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)] = "tiny",
    reference: Annotated[
        str, typer.Option(help="Witnesses: torch, hf, meta, several with commas, or all.")
    ] = "torch",
    dtype: Annotated[
        str | None,
        typer.Option(help="Dtypes: f64, f32, bf16, several with commas, or all, which is usual."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="free, isolated, decode, grad, step, generate, tokens, several with commas, or "
            "all; the first three are usual, decode with one ragged scenario."
        ),
    ] = None,
    scenario: options.Scenario = None,
    subject: Annotated[
        str,
        typer.Option(
            help="What is judged: jaxllama, an attention backend (xla, blockwise, dot_product, "
            "cudnn, splash), a form of its layers (stacked, unrolled, fused), torch, hf, meta, a "
            "name that an installed package publishes, a directory of traces, or module:name."
        ),
    ] = "jaxllama",
    mesh: options.Mesh = None,
    precision: Annotated[
        str, typer.Option(help="Of the JAX model's products: highest, high, or default.")
    ] = "highest",
    override: options.Override = None,
    prompt: options.Prompt = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token ids with commas, in place of text.")
    ] = None,
    length: options.Length = None,
    json_path: options.Json = None,
    html_path: options.Html = None,
    junit_path: options.Junit = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Hold one layer at a time; f32 and bf16 unless told.")
    ] = False,
    quant: Annotated[
        str | None,
        typer.Option(
            help="Measure the model with its weights as int8, int4 or int4:GROUP: the verdict is "
            "quality, and says what is lost."
        ),
    ] = None,
    cache_dtype: Annotated[
        str | None, typer.Option(help="int8: measure it through a cache that is rounded so.")
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="A training's file with [lora]: mode step is of its factors alone.",
        ),
    ] = None,
    mitigation: Annotated[
        str | None,
        typer.Option(
            help="Of training, each one more step for --mode step: attention_dropout, "
            "residual_dropout, qk_norm, qk_clip, score_cap, logit_cap, z_loss, clip, or all."
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Of a processor, for the cause of a divergence; 30 if not given."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Run the same weights through JAX and PyTorch and compare every tensor."""
    from parity.diagnose.search import SECONDS
    from parity.report import outputs
    from parity.runner.run import DEFAULT_SCENARIOS, run

    outputs.check_reports(json_path, html_path, junit_path, inputs=[checkpoint, subject])
    compilation_cache.turn_on()
    with progress_bar(quiet=quiet) as progress:
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
            mesh=mesh,
            precision=precision,
            stream=stream,
            seconds=SECONDS if seconds is None else seconds,
            quant=quant,
            cache_dtype=cache_dtype,
            lora=lora,
            mitigations=mitigation or (),
        )
    outputs.publish(result, json=json_path, html=html_path, junit=junit_path, quiet=quiet)
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
