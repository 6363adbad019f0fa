"""The command line: `jaxllama info | convert | verify | generate | bench | plan | train`.

Exit codes: 0 done or equal, 1 different, or a training that cannot go on, 2 bad usage or bad input,
4 an internal error or no memory, 130 interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxllama import compilation_cache
from jaxllama.bench.command import bench
from jaxllama.cli_generate import generate
from jaxllama.command_line.console import SafeConsole, SafeTable
from jaxllama.command_line.group import CHECKPOINT, command
from jaxllama.command_line.help import examples
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.layout import say, with_verdict
from jaxllama.command_line.printable import one_line
from jaxllama.plan.command import plan
from jaxllama.train.command import train

if TYPE_CHECKING:
    from jaxllama.checkpoint.convert import Conversion
    from jaxllama.checkpoint.verify import Verification

app = command(
    "jaxllama",
    about="Llama 3 in JAX.",
    shown=("jaxllama info tiny", "jaxllama generate tiny 'Once upon' --max-tokens 9"),
    exit_codes="0 done or equal, 1 different, or a training stopped, 2 bad usage or input, "
    "4 internal error or no memory, 130 Ctrl-C",
    no_cache=compilation_cache.turn_off,
)
# Tensors that `verify` lists; of two unrelated checkpoints all differ.
MOST_DIFFERENCES = 20
_MOST_PROBLEMS = 10  # that `info` lists, those of one kind being one
_Source = Annotated[str, typer.Argument(help=CHECKPOINT)]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    app(arguments)


@app.command(epilog=examples("jaxllama info DIR --bandwidth 800", "jaxllama info ORG/MODEL --json"))
@on_interrupt()
def info(
    checkpoint: _Source,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="GB/s at which memory is read: the decode floor in tokens a second."),
    ] = None,
) -> None:
    """Say what a checkpoint is, what it takes to decode, and what is missing or odd."""
    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.checkpoint.info import describe
    from jaxllama.errors import InputError, argument, summarise

    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise InputError(f"{argument('bandwidth', bandwidth)}: expected GB/s above 0")
    found = describe(open_checkpoint(checkpoint))
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        table = SafeTable(show_header=False, box=None)
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
            **found.decoding.rows(bandwidth),
            **{name: str(value) for name, value in found.config.items()},
        }
        for name, value in rows.items():
            table.add_row(name, value)
        for line in found.odd:
            table.add_row("odd", line)
        for line in summarise(found.problems, _MOST_PROBLEMS):
            table.add_row("problem", line)
        SafeConsole().print(table)
    if found.problems:
        raise typer.Exit(2)


@app.command(
    epilog=examples(
        "jaxllama convert DIR OUT --to meta",
        "jaxllama convert DIR model.gguf --to gguf --quantize q8_0",
        "jaxllama convert DIR OUT --to hf --lora ADAPTER --dtype bf16",
    )
)
def convert(
    source: _Source,
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
    lora: Annotated[
        str | None, typer.Option(help="PEFT LoRA adapter to merge: directory or name of the Hub.")
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(help="Key and value heads: fewer are means of neighbours, more are copies."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace a checkpoint that exists.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet/--no-quiet", help="No progress bar.")] = False,
) -> None:
    """Convert a checkpoint to another format, without loss unless it is cast or quantised."""
    from jaxllama.checkpoint import convert as run

    tokens = None if perplexity is None else _tokens(source, perplexity)

    console = SafeConsole(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=quiet or not console.is_terminal)
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
                kv_heads=kv_heads,
                overwrite=overwrite,
                progress=None if quiet else advance,
            )
        finally:
            if bar.live.is_started:
                bar.stop()
    measured = None if tokens is None else _measure(source, done.target, tokens)
    if as_json:
        print(json.dumps(_as_dict(done, measured), indent=2))
    else:
        _print(done, measured)


@app.command(epilog=examples("jaxllama verify DIR OUT", "jaxllama verify OUT --manifest"))
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
    quiet: Annotated[bool, typer.Option("--quiet", help="The verdict alone.")] = False,
) -> None:
    """Prove two checkpoints of any formats equal to the bit, or say what differs and why."""
    from jaxllama.checkpoint import check_manifest, open_checkpoint
    from jaxllama.checkpoint import verify as compare
    from jaxllama.checkpoint.lora.manifest import check_adapter, is_adapter
    from jaxllama.errors import InputError

    if manifest == (second is not None):
        raise InputError("give two checkpoints, or one and --manifest")
    if second is None and is_adapter(Path(first)):
        check_adapter(Path(first))
        _verdict(f"equal: {first} is as its manifest says")
        return
    if second is None:
        notes = check_manifest(open_checkpoint(first))
        _verdict(f"equal: {first} is as its manifest says", notes=notes, quiet=quiet)
        return
    result = compare(first, second)
    if result.equal:
        verdict = f"equal: {len(result.digests)} tensors, to the bit"
    else:
        count = len(result.differences)
        total = len({*result.digests, *(found.name for found in result.differences)})
        verdict = f"different: {count} of {total} tensors" if count else "different: settings"
    _verdict(verdict, _differences(result), notes=result.notes, quiet=quiet)
    if not result.equal:
        raise typer.Exit(1)


def _verdict(
    verdict: str, lines: Iterable[str] = (), *, notes: Iterable[str] = (), quiet: bool = False
) -> None:
    """Print a verdict first, and last where what is below it fills the screen."""
    console = SafeConsole()
    below = [] if quiet else [*lines, *(f"note: {note}" for note in notes)]
    with_verdict(console, verdict, lambda: say(console, below))


def _differences(result: Verification) -> Iterator[str]:
    # The configuration first: it may be why the tensors differ.
    for line in (*result.config, *result.differences[:MOST_DIFFERENCES]):
        yield f"  {line}"
    if len(result.differences) > MOST_DIFFERENCES:
        yield f"  and {len(result.differences) - MOST_DIFFERENCES} more tensors"


app.command(
    epilog=examples(
        "jaxllama generate DIR 'Once upon a time' --max-tokens 64",
        "jaxllama generate DIR --chat --system 'Be brief.' --temperature 0.7",
        "jaxllama generate DIR 'Once' --quant int8 --json",
    )
)(generate)
app.command(epilog=examples("jaxllama bench DIR --json bench.json"))(bench)
app.command(epilog=examples("jaxllama plan 70b --mesh tensor=8 --batch 8 --context 8192"))(plan)
app.command(epilog=examples("jaxllama train train.toml"))(train)


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
    from jaxllama.checkpoint.perplexity import perplexity
    from jaxllama.model import Llama

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
        print(f"note: {one_line(note)}")
    for name, loss in done.losses.items():
        error = f"relative RMS error {loss.relative_rms:.2e}, largest {loss.largest:.3g}"
        if name in done.encodings:
            print(f"quantised: {one_line(name)}: {done.encodings[name]}, {error}")
        else:
            changed = f"{loss.changed} of {loss.size} elements changed"
            print(f"rounded: {one_line(name)}: {changed}, {error}")
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
