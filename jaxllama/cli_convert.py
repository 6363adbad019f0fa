"""`jaxllama convert`: what was written, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxllama.command_line.interrupt import on_interrupt

if TYPE_CHECKING:
    from jaxllama.checkpoint.convert import Conversion


def convert(
    source: Annotated[str, typer.Argument(help="Directory, GGUF file, tiny or smollm2.")],
    target: Annotated[Path, typer.Argument(help="Directory to write, or a .gguf file.")],
    to: Annotated[str, typer.Option(help="hf, meta, orbax or gguf.")],
    dtype: Annotated[
        str | None, typer.Option(help="Cast weights; without it every tensor keeps its own.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Weights files (hf, gguf) or model-parallel degree (meta).")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="q8_0 or q4_0: quantise the matrices (gguf).")
    ] = None,
    perplexity: Annotated[
        Path | None,
        typer.Option(help="Say how well source and target foretell this text, both in float32."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    lora: Annotated[Path | None, typer.Option(help="PEFT LoRA adapter to merge.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace a checkpoint that exists.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet/--no-quiet", help="No progress bar.")] = False,
) -> None:
    """Convert a checkpoint to another format, without loss unless it is cast or quantised."""
    from jaxllama.checkpoint import convert as run

    tokens = None if perplexity is None else _tokens(source, perplexity)

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=quiet)
    task = bar.add_task(f"to {to}", total=None)

    def advance(name: str, nbytes: int, total: int) -> None:
        bar.start()  # the first time, for nothing should stand above an early error
        bar.update(task, total=total, advance=nbytes)

    def left() -> str:
        partial = list(target.parent.glob(f".{target.name}*.partial"))
        if not partial:
            return "nothing was written"
        return f"run it again to go on from {partial[0]}, or remove that"

    with on_interrupt(left):
        try:
            done = run(
                source,
                target,
                to=to,
                dtype=dtype,
                shards=shards,
                quantize=quantize,
                lora=lora,
                overwrite=overwrite,
                progress=advance,
            )
        finally:
            if bar.live.is_started:
                bar.stop()
    measured = None if tokens is None else _measure(source, done.target, tokens)
    if as_json:
        print(json.dumps(_as_dict(done, measured), indent=2))
    else:
        _print(done, measured)


def _tokens(source: str, file: Path) -> list[int]:
    """Read the text before anything is written, so that a slip costs nothing."""
    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.errors import InputError

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--perplexity {file}: no text that can be read: {error}") from error
    tokens = open_checkpoint(source).tokenizer().encode(text)
    if len(tokens) < 2:
        raise InputError(f"--perplexity {file}: {len(tokens)} tokens; give a longer text")
    return tokens


def _measure(source: str, target: Path, tokens: Sequence[int]) -> dict[str, Any]:
    from jaxllama.model import Llama
    from jaxllama.perplexity import perplexity

    found = {"tokens": len(tokens) - 1}
    return found | {
        name: perplexity(Llama.from_pretrained(checkpoint), tokens)
        for name, checkpoint in (("source", source), ("target", target))
    }


def _as_dict(done: Conversion, measured: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "target": str(done.target),
        "format": done.format,
        "nbytes": done.nbytes,
        "seconds": done.seconds,
        "resumed": done.resumed,
        "notes": list(done.notes),
        "tensors": {
            name: {"encoding": done.encodings.get(name), **vars(done.losses[name])}
            if name in done.losses
            else {"encoding": done.encodings.get(name), "changed": 0}
            for name in done.digests
        },
        "perplexity": measured,
    }


def _print(done: Conversion, measured: dict[str, Any] | None) -> None:
    for note in done.notes:
        print(f"note: {note}")
    for name, loss in done.losses.items():
        error = f"relative RMS error {loss.relative_rms:.2e}, largest {loss.largest:.3g}"
        if name in done.encodings:
            print(f"quantised: {name}: {done.encodings[name]}, {error}")
        else:
            print(f"rounded: {name}: {loss.changed} of {loss.size} elements changed, {error}")
    if done.encodings:
        worst = max(done.encodings, key=lambda name: _relative(done, name))
        print(f"worst: {worst}: relative RMS error {_relative(done, worst):.2e}")
    if measured:
        print(
            f"perplexity of {measured['tokens']} tokens: {measured['source']:.4f} of the source, "
            f"{measured['target']:.4f} of the target"
        )
    if done.resumed:
        print(f"resumed: {done.resumed} tensors were already written")
    speed = done.nbytes / max(done.seconds, 1e-9) / 1e6
    rounded = len(done.losses.keys() - done.encodings.keys())
    said = [f"{len(done.encodings)} tensors quantised"] if done.encodings else []
    said += [f"{rounded} tensors rounded"] if rounded else []
    print(
        f"{done.target}: {len(done.digests)} tensors, {done.nbytes:,} bytes in "
        f"{done.seconds:.1f} s ({speed:.0f} MB/s), {', '.join(said) or 'nothing lost'}"
    )


def _relative(done: Conversion, name: str) -> float:
    return done.losses[name].relative_rms if name in done.losses else 0.0
