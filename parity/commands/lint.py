"""`parity lint`. Exit codes: 0 clean, 1 faulty, 2 bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.layout import say, with_verdict
from jaxllama.errors import InputError, on_the_command_line
from jaxllama.files.output import check_outputs, write_text
from parity.commands import options
from parity.report.outputs import after_verdict

if TYPE_CHECKING:
    from parity.lint.case import Case
    from parity.lint.linter import LintReport

# What an .npz or .pt may hold beside the mask, under the names people save them by.
_BESIDE = {
    "ids": ("ids", "input_ids", "tokens"),
    "labels": ("labels",),
    "positions": ("positions", "position_ids"),
    "segments": ("segments", "segment_ids", "document_ids"),
    "valid": ("valid", "attention_mask", "padding_mask"),
    "lengths": ("lengths", "seq_lens", "seqlens"),
    "slot_positions": ("slot_positions", "key_positions"),
}
_ARRAY = "FILE[:KEY] or [[...]]"


@on_interrupt()
def lint_command(
    mask: Annotated[
        str | None,
        typer.Argument(help="An .npy, .npz or .pt file, - for one on stdin, a list, or a spec."),
    ] = None,
    observed: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODULE:FUNCTION",
            help="Call this, and take the masks that its attentions get, in place of MASK.",
        ),
    ] = None,
    expect: Annotated[
        str, typer.Option(help="Intended spec; `default` is causal, `none` compares nothing.")
    ] = "default",
    use: Annotated[
        str | None, typer.Option(help="bool or additive: how the kernel takes the array.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="bts, nts or bnts ([B*N, T, S]): what three axes are.")
    ] = None,
    input_ids: Annotated[str | None, typer.Option(help=f"Token ids, {_ARRAY}.")] = None,
    labels: Annotated[str | None, typer.Option(help="Training labels.")] = None,
    positions: Annotated[str | None, typer.Option(help="Rotary positions.")] = None,
    segments: Annotated[str | None, typer.Option(help="Document numbers of packed rows.")] = None,
    valid: Annotated[
        str | None, typer.Option(help="1 on real tokens, 0 on padding; or numbers of documents.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Real tokens of each row, as [5, 3], in place of --valid.")
    ] = None,
    padding: Annotated[
        str, typer.Option(help="right or left: where the padding is that --lengths leave.")
    ] = "right",
    slot_positions: Annotated[
        str | None, typer.Option(help="Position of each slot's token in a ring; -1: unwritten.")
    ] = None,
    cache_length: Annotated[
        int | None, typer.Option(help="Tokens in the cache before this call.")
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="Slots of a static cache.")] = None,
    queries: Annotated[int | None, typer.Option(help="T, for a spec without arrays.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads of the model.")] = None,
    pad_id: Annotated[int | None, typer.Option(help="The tokenizer's padding id.")] = None,
    eos_id: Annotated[list[int] | None, typer.Option(help="End id; repeatable.")] = None,
    scores_dtype: Annotated[
        str | None, typer.Option(help="f16, bf16, f32 or f64, of the scores.")
    ] = None,
    score_limit: Annotated[float, typer.Option(help="No score is larger than this.")] = 100.0,
    empty_row: Annotated[
        str | None, typer.Option(help="Declared policy: zero, self or error.")
    ] = None,
    is_causal: Annotated[
        bool, typer.Option("--is-causal", help="The kernel gets a causal flag, too.")
    ] = False,
    align: Annotated[
        str | None, typer.Option(help="Alignment of that flag: top_left or bottom_right.")
    ] = None,
    positional_bias: Annotated[
        bool, typer.Option("--positional-bias", help="The array also carries a bias.")
    ] = False,
    first_position: Annotated[int, typer.Option(help="Position of a first real token.")] = 0,
    window: Annotated[int | None, typer.Option(help="Window of the config, in keys.")] = None,
    json_path: options.JsonOrStdout = None,
    sarif_path: Annotated[
        Path | None, typer.Option("--sarif", help="Write SARIF 2.1.0 here, for code hosts.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="The verdict and the findings: no drawing, no notes.")
    ] = False,
) -> None:
    """Check an attention mask by every rule that has what it needs."""
    # Here, as in all verbs: what a verb needs is not loaded for the help of another.
    from parity.lint import sarif
    from parity.lint.facts import LAYOUTS
    from parity.lint.files import is_stdin, looks_like_file
    from parity.lint.linter import lint

    if (mask is None) == (observed is None):
        raise InputError(
            "give either a mask (a file, - or a spec) or --from module:function, which runs a model"
        )
    _one_of("--use", use, ("bool", "additive"))
    _one_of("--layout", layout, tuple(LAYOUTS))
    _one_of("--padding", padding, ("right", "left"))
    _one_of("--empty-row", empty_row, ("zero", "self", "error"))
    _one_of("--align", align, ("top_left", "bottom_right"))
    named = {
        "ids": input_ids,
        "labels": labels,
        "positions": positions,
        "segments": segments,
        "valid": valid,
        "lengths": lengths,
        "slot_positions": slot_positions,
    }
    given = [g for g in (mask, *named.values()) if g and looks_like_file(g)]
    if sum(map(is_stdin, given)) > 1:
        raise InputError(
            "- is given twice, and standard input can be read once; save one to a file"
        )
    read = [g.partition(":")[0] for g in given if not is_stdin(g)]
    check_outputs(None if options.is_stdout(json_path) else json_path, sarif_path, inputs=read)
    arrays = {k: _facts(k, v) for k, v in named.items() if v is not None}
    intended, problems = _intended(expect)
    facts: dict[str, Any] = {
        **arrays,
        "intended": intended,
        "problems": problems,
        "use": use,
        "layout": layout,
        "padding_side": padding,
        "past": cache_length,
        "capacity": capacity,
        "queries": queries,
        "heads": heads,
        "pad_id": pad_id,
        "eos_ids": tuple(eos_id or ()),
        "scores_dtype": scores_dtype,
        "score_limit": score_limit,
        "empty_row": empty_row,
        "is_causal": is_causal or None,
        "align": align,
        "positional_bias": positional_bias,
        "first_position": first_position,
        "window": window,
    }
    said = {name: fact for name, fact in facts.items() if fact is not None or name == "intended"}
    cases = _observed_cases(observed, said) if observed else _given_case(str(mask), said)
    reports = {name: lint(case, on_the_command_line) for name, case in cases.items()}
    document = json.dumps(_document(observed, reports), indent=1)
    if options.is_stdout(json_path):
        typer.echo(document)
    else:
        console = SafeConsole()
        verdict, *lines = _lines(observed, reports, cases, console, quiet=quiet)
        with_verdict(console, verdict, lambda: say(console, lines))
    with after_verdict():
        if json_path is not None and not options.is_stdout(json_path):
            write_text(json_path, document + "\n")
        if sarif_path is not None:
            write_text(sarif_path, json.dumps(sarif.document(reports), indent=1) + "\n")
    if any(report.errors for report in reports.values()):
        raise typer.Exit(1)


def _given_case(mask: str, facts: dict[str, Any]) -> dict[str, Case]:
    from parity.lint.case import Case

    found = _subject(mask)
    problems = (*found.get("problems", ()), *facts["problems"])
    return {mask: Case(**{**found, **facts, "problems": problems})}


def _observed_cases(place: str, facts: dict[str, Any]) -> dict[str, Case]:
    from parity.lint.observed.observe import observe

    return {mask.name: mask.call.case(**facts) for mask in observe(place)}


def _document(observed: str | None, reports: dict[str, LintReport]) -> dict[str, Any]:
    """Return the report of one mask, or those of all that a model was seen with."""
    from parity.lint.linter import SCHEMA_VERSION

    masks = [{"mask": name, **report.to_json()} for name, report in reports.items()]
    if observed is None:
        return masks[0]
    verdict = _worst(reports)
    return {"from": observed, "schema_version": SCHEMA_VERSION, "verdict": verdict, "masks": masks}


def _worst(reports: dict[str, LintReport]) -> str:
    found = {report.verdict for report in reports.values()}
    return next(verdict for verdict in ("faulty", "suspect", "clean") if verdict in found)


def _lines(
    observed: str | None,
    reports: dict[str, LintReport],
    cases: dict[str, Case],
    console: SafeConsole,
    *,
    quiet: bool,
) -> list[str]:
    """Return the same for people: the masks with findings whole, of the others a line."""
    from parity.lint.report import headline, in_lines

    width = console.width if console.is_terminal else None
    whole = {
        name: list(in_lines(report, cases[name], name, width=width, quiet=quiet))
        for name, report in reports.items()
    }
    if observed is None:
        return [line for lines in whole.values() for line in lines]
    many = "mask" if len(reports) == 1 else "masks"
    lines = [f"{_worst(reports)}: {len(reports)} {many} of {observed}"]
    for name, report in reports.items():
        if report.findings or len(reports) == 1:
            lines += whole[name] if quiet else ["", *whole[name]]
        elif not quiet:
            lines.append(headline(report, cases[name], name))
    return lines


def _subject(mask: str) -> dict[str, Any]:
    """Return the mask, or the spec, and what its file holds beside it."""
    from parity.lint.files import choose, load_array, load_file, looks_like_file
    from parity.lint.spec_text import parse_spec

    if mask.lstrip().startswith("["):
        return {"mask": load_array(mask)}
    if not looks_like_file(mask):
        spec, problems = parse_spec(mask)
        return {"spec": spec, "problems": problems}
    name, _, key = mask.partition(":")
    beside = load_file(Path(name))
    facts: dict[str, Any] = {"mask": choose(name, beside, key, "mask")}
    beside = {} if key else beside
    for fact, names in _BESIDE.items():
        found = [beside[n] for n in names if n in beside and beside[n] is not facts["mask"]]
        if found and len(beside) > 1:
            facts[fact] = found[0]
    return facts


def _facts(name: str, given: str) -> np.ndarray:
    from parity.lint.files import load_array

    array = load_array(given, key=name)
    if array.ndim == 1 and name != "lengths":
        array = array[None]
    if array.dtype.kind not in "biu":
        raise InputError(f"{name}: dtype {array.dtype}, expected integers or bool")
    return array


def _intended(text: str) -> tuple[Any, tuple[str, ...]]:
    from parity.lint.spec_text import parse_spec

    if text == "default":
        return "default", ()
    return (None, ()) if text == "none" else parse_spec(text)


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{option} {value!r}: expected one of {', '.join(known)}")
