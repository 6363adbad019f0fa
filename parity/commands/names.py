"""`parity taps` and `parity names`: what can be shown, and what a subject shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.group import CHECKPOINT
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.layout import say
from jaxllama.files.output import check_writable, write_text
from parity.commands import options
from parity.report.outputs import after_verdict
from parity.taps import AXES, LETTERS, dtype_of, layout_hint, meaning_of, template_of

if TYPE_CHECKING:
    from jaxllama.checkpoint import Checkpoint
    from parity.subjects.base import Subject
    from parity.subjects.dry_run import NamesReport, ShownTap

_SUBJECT = "What is shown: as for parity run: jaxllama, torch, hf, a published name, module:name."


@on_interrupt()
def taps_command(
    checkpoint: Annotated[str, typer.Argument(help=f"For --subject: {CHECKPOINT}")] = "tiny",
    subject: Annotated[
        str | None, typer.Option(help="Say which of them it shows; as for parity run.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of --subject: f64, f32 or bf16.")] = None,
    json_path: options.JsonOrStdout = None,
) -> None:
    """List the canonical names of a Llama's intermediates, their layouts, dtypes and meanings."""
    made = None if subject is None else _made(checkpoint, subject, dtype)[0]
    rows: list[dict[str, Any]] = [
        {
            "name": template_of(kind),
            "axes": axes,
            "dtype": dtype_of(kind),
            "meaning": meaning_of(kind),
            **({} if made is None else {"shown": kind not in made.absent}),
        }
        for kind, axes in AXES.items()
    ]
    document = {"schema_version": "1.0", "letters": LETTERS, "taps": rows}
    if made is not None:
        document |= {"subject": made.name}
    _publish(document, partial(_taps_lines, rows, None if made is None else made.name), json_path)


@on_interrupt()
def names_command(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    subject: Annotated[str, typer.Option(help=_SUBJECT)] = "jaxllama",
    dtype: Annotated[str | None, typer.Option(help="f64, f32 or bf16; f32 if it has that.")] = None,
    scenario: Annotated[str, typer.Option(help="One that it takes.")] = "causal",
    length: Annotated[int, typer.Option(help="Tokens per row.")] = 8,
    json_path: options.JsonOrStdout = None,
) -> None:
    """Run a subject once, on a few tokens: what shows, under which names, and what does not."""
    report = look(checkpoint, subject, dtype, scenario, length)
    _publish(report.to_json(), lambda _: _names_lines(report), json_path, after_verdict)
    if report.faulty:
        raise typer.Exit(1)


def look(
    checkpoint: str, subject: str, dtype: str | None, scenario: str, length: int
) -> NamesReport:
    """Return what a subject shows; arguments are those of `parity names`."""
    import jax

    from parity import scenarios
    from parity.runner.prompt import encoder, special_ids
    from parity.runner.room import DRY_RUN_MAPS, check_room
    from parity.subjects.dry_run import dry_run
    from parity.subjects.takes import nothing_taken, takes_of

    compilation_cache.turn_on()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        made, opened = _made(checkpoint, subject, dtype)
        encode, _ = encoder(opened, None)
        specials = special_ids(opened)
        measured = scenarios.shape(scenario, encode, opened.config, length=length)
        check_room([measured], opened.config.num_attention_heads, maps=DRY_RUN_MAPS[made.dtype])
        inputs = scenarios.scenario(
            scenario, encode, opened.config, length=length, specials=specials
        )
        taken, refused = takes_of(made).sort([inputs])
        if not taken:
            raise nothing_taken(made, refused)
        return dry_run(made, taken[0], opened.config)


def _made(checkpoint: str, subject: str, dtype: str | None) -> tuple[Subject, Checkpoint]:
    """Return a subject by its name, in one dtype, and the opened checkpoint."""
    import jax

    from jaxllama.checkpoint import open_checkpoint
    from parity.subjects import select

    resolved = select.resolve_subject(subject)
    lanes = select.dtypes_of(resolved, dtype)
    lane = lanes[0] if dtype is not None or "f32" not in lanes else "f32"
    with jax.enable_x64(True):
        opened = open_checkpoint(checkpoint)
        return select.subject_factory(resolved, opened, opened.config)(lane), opened


def _publish(
    document: dict[str, Any],
    lines: Callable[[int | None], Iterable[str]],
    path: Path | None,
    writing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Write a document, or print it, or print what `lines` makes of it in a terminal's columns.

    Args:
        document: what is written.
        lines: what is printed.
        path: where to; None for nowhere.
        writing: what the file is written under: `after_verdict` where the lines are a verdict.
    """
    written = json.dumps(document, indent=1)
    if options.is_stdout(path):
        typer.echo(written)
        return
    if path is not None:
        check_writable(path)
    console = SafeConsole()
    say(console, lines(console.width if console.is_terminal else None))
    if path is not None:
        with writing():
            write_text(path, written + "\n")


def _taps_lines(
    rows: Sequence[dict[str, Any]], subject: str | None, columns: int | None
) -> Iterator[str]:
    """Say what taps there are, a line each; two where a terminal has no room, which a file has."""
    fields = "name", "axes", "dtype"
    widths = [max(len(row[field]) for row in rows) for field in fields]
    table = [
        "  ".join(row[field].ljust(width) for field, width in zip(fields, widths, strict=True))
        + f"  {row['meaning']}"
        for row in rows
    ]
    if columns is not None and max(map(len, table)) + len("+ ") > columns:
        table = [
            f"{row['name']}\n    {row['axes']}, {row['dtype']}: {row['meaning']}" for row in rows
        ]
    yield from (f"{letter}  {what}" for letter, what in LETTERS.items())
    yield ""
    if subject is not None:
        shown = sum(row["shown"] for row in rows)
        yield f"{subject} shows {shown} of {len(rows)} kinds; - is what it does not show"
        yield ""
    for row, line in zip(rows, table, strict=True):
        mark = "" if subject is None else ("+ " if row["shown"] else "- ")
        yield from f"{mark}{line}".split("\n")


def _names_lines(report: NamesReport) -> Iterator[str]:
    yield (
        f"{report.subject} in {report.dtype}, {report.scenario}: shows {len(report.shown)} kinds "
        f"of taps; its own cache: {_yes(report.cache)}; gradients: {_yes(report.gradients)}"
    )
    for one in report.shown:
        yield f"  {one.tap}{_layers(one)}  {_shape(one)}  {one.dtype}  {one.place}".rstrip()
    if report.silent:
        yield f"named and never shown: {', '.join(report.silent)}"
    if report.unknown:
        yield f"shown under no canonical name: {', '.join(report.unknown)}"
    yield f"declared absent: {', '.join(report.absent) or 'nothing'}"
    for note in report.notes:
        yield f"note: {note}"


def _yes(offered: bool) -> str:
    return "yes" if offered else "no"


def _layers(one: ShownTap) -> str:
    if not one.layers:
        return ""
    first, last = one.layers[0], one.layers[-1]
    whole = list(one.layers) == list(range(first, last + 1))
    return f" ({first} to {last})" if whole else f" ({', '.join(map(str, one.layers))})"


def _shape(one: ShownTap) -> str:
    axes = next(axes for kind, axes in AXES.items() if template_of(kind) == one.tap)
    said = f"{axes} {list(one.shape)}"
    if one.shape == one.expected:
        return said
    hint = layout_hint(one.shape, axes, one.expected)
    return f"{said}, expected {list(one.expected)}" + (f" ({hint})" if hint else "")
