"""The result on a terminal: the verdict first, then where, what, and how to see it again."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.command_line.layout import (
    fits,
    make_table,
    print_table,
    say,
    verdict_line,
    with_verdict,
)
from parity.comparison.quality import QualityReport
from parity.report.environment import cost_line, environment_line
from parity.report.quality import figures_table, layers_table, quality_lines
from parity.report.wording import (
    brief,
    cause_lines,
    divergence_lines,
    headline,
    inconclusive_lines,
    logits_figures,
    machine_lines,
    nearest,
    not_run_lines,
    reading_line,
)
from parity.result import Result, TapResult, WitnessResult
from parity.taps import LAYER_TAPS, split_name

STYLES = {
    "equal": "bold green",
    "divergent": "bold red",
    "inconclusive": "bold yellow",
    "quality": "bold blue",
}
# A grid of layers by operators stays readable up to this many layers; more are folded.
MOST_LAYERS = 40
# Modes that a grid of the subject's own runs is not about.
_BESIDE_GRID = ("isolated", "probe")


def show(result: Result, console: Console, *, quiet: bool = False) -> None:
    """Print a result; the first line is the verdict, and on a terminal that it fills the last.

    Args:
        result: of a run.
        console: where to.
        quiet: the verdict, the place, the cause and the command alone.
    """
    verdict = _verdict(result)
    if quiet:
        say(console, [verdict, *brief(result)[1:]])
    else:
        with_verdict(console, verdict, lambda: _show(result, console))


def _verdict(result: Result) -> Text:
    return verdict_line(headline(result), STYLES[result.verdict])


def _show(result: Result, console: Console) -> None:
    if result.quality is not None:
        return _show_quality(result, result.quality, console)
    say(console, not_run_lines(result))
    say(console, machine_lines(result))
    if result.first_divergence is not None:
        say(console, divergence_lines(result.first_divergence, result))
    say(console, cause_lines(result))
    say(console, inconclusive_lines(result), "yellow")
    print_table(console, _lane_table(result, True), _lane_table(result, False))
    if any(row.tap == "logits" for row in result.rows):
        say(console, [_logits_line(result)])
    if result.witnesses:
        print_table(console, _witness_table(result.witnesses))
    grid = _grid(result)
    if grid.row_count and fits(grid, console):  # none of a backward pass
        console.print(grid)
    elif grid.row_count:
        say(console, _layer_lines(result))
    say(console, (f"note: {note}" for note in result.notes))
    say(console, [_coverage_line(result)])
    if result.reading is not None:
        say(console, [reading_line(result.reading)])
    if cost := cost_line(result.timing):
        say(console, [cost])
    say(console, [environment_line(result.environment), f"again: {result.command}"])


def _show_quality(result: Result, report: QualityReport, console: Console) -> None:
    """Print what was lost; a table of layers for each dtype."""
    say(console, machine_lines(result))
    print_table(console, figures_table(report))
    for figures in report.lanes:
        print_table(console, layers_table(figures))
    say(console, quality_lines(report))
    say(console, (f"note: {note}" for note in result.notes))
    if result.reading is not None:
        say(console, [reading_line(result.reading)])
    say(console, [environment_line(result.environment), f"again: {result.command}"])


def _layer_lines(result: Result) -> Iterable[str]:
    """Yield of each layer how many operators are beyond their limit, and which most."""
    layers: dict[int, list[TapResult]] = {}
    for row in result.rows:
        kind, layer = split_name(row.tap)
        if layer is not None and kind.startswith("layers.") and row.mode not in _BESIDE_GRID:
            layers.setdefault(layer, []).append(row)
    for layer, rows in sorted(layers.items())[:MOST_LAYERS]:
        worst = max(rows, key=lambda r: (not r.passed, nearest(r)[0]))
        failed = len({row.tap for row in rows if not row.passed})
        said = f", {failed} operators beyond their limit" if failed else ""
        name = split_name(worst.tap)[0].removeprefix("layers.")
        yield f"layer {layer}: rho {worst.rho:.3g} at {name}{said}"


def _lane_table(result: Result, errors: bool) -> Table:
    """One row a run: its largest error, and the tap that comes closest to its limit."""
    table = make_table("subject against the float64 reference (^ by its largest element)")
    for column in ("dtype", "scenario", "mode"):
        table.add_column(column, no_wrap=True)
    for column in ("error", "rho", "limit") if errors else ("rho", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("nearest its limit", overflow="fold")  # a name is to be copied
    groups: dict[tuple[str, str, str], list[TapResult]] = {}
    for row in result.rows:
        groups.setdefault((row.lane, row.scenario, row.mode), []).append(row)
    for group, rows in groups.items():
        worst = max(rows, key=lambda r: (not r.passed, nearest(r)[0]))
        error = (f"{max(r.error for r in rows):.1e}",) if errors else ()
        _, rho, limit, mark = nearest(worst)
        cells = (*group, *error, f"{rho:.3g}{mark}", f"{limit:g}", worst.tap)
        table.add_row(*cells, style=None if worst.passed else "red")
    return table


def _logits_line(result: Result) -> str:
    parts = []
    for found in logits_figures(result):
        said = f"{found.top1_flips:.0f} top-1 flips"
        if found.unexplained_flips:
            said += f", {found.unexplained_flips:.0f} beyond rounding"
        elif found.top1_flips and found.passed:  # else more than rounding is in them
            said += ", within what rounding explains at this dtype"
        parts.append(f"{found.lane} KL {found.kl_max:.1e}, shift {found.shift:.1e}, {said}")
    return f"logits: {'; '.join(parts)}"


def _witness_table(witnesses: list[WitnessResult]) -> Table:
    """One row a witness and dtype, the worst of its scenarios."""
    table = make_table("witnesses (gap: to the subject)")
    for column in ("witness", "dtype"):
        table.add_column(column)
    for column in ("taps", "error", "rho", "limit", "gap"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str], list[WitnessResult]] = {}
    for row in witnesses:
        groups.setdefault((row.witness, row.lane), []).append(row)
    for group, rows in groups.items():
        worst = max(rows, key=lambda r: (not r.agrees, r.rho))
        errors = f"{max(r.error for r in rows):.1e}", f"{worst.rho:.3g}", f"{worst.limit:g}"
        table.add_row(
            *group,
            str(max(r.compared for r in rows)),
            *(("reference", "", "") if worst.is_gold else errors),
            _gap([r for r in rows if r.mode != "grad"]),
            style=None if worst.agrees else "yellow",
        )
    return table


def _gap(forward: list[WitnessResult]) -> str:
    """Say how far a witness's logits are from the subject's; a backward pass shows none."""
    return f"{max(r.subject_gap for r in forward):.1e}" if forward else "-"


def _grid(result: Result) -> Table:
    """Draw layers by operators; a cell is log10 of the worst rho of the subject's own run."""
    worst: dict[tuple[int, str], float] = {}
    failed: set[tuple[int, str]] = set()
    for row in result.rows:
        kind, layer = split_name(row.tap)
        if layer is None or row.mode in _BESIDE_GRID or not kind.startswith("layers."):
            continue
        key = layer, kind.removeprefix("layers.")
        worst[key] = max(worst.get(key, 0.0), row.rho)
        if not row.passed:
            failed.add(key)
    # 19 columns in 80 characters: no gap beside the one that the box makes.
    table = make_table("log10 rho, layers by operators, on its own values", gap=0)
    table.add_column("layer", justify="right", no_wrap=True)
    for name in LAYER_TAPS:
        table.add_column(_short(name), justify="right", no_wrap=True)
    layers = sorted({layer for layer, _ in worst})
    # Of a deep model, those from just before the first failure on.
    first = max(0, layers.index(min(failed)[0]) - 2) if failed else 0
    first = min(first, max(0, len(layers) - MOST_LAYERS))
    shown = layers[first : first + MOST_LAYERS]
    if len(shown) < len(layers):
        table.caption = f"and {len(layers) - len(shown)} more layers"
    for layer in shown:
        cells = []
        for name in LAYER_TAPS:
            rho = worst.get((layer, name))
            text = "" if rho is None else f"{math.log10(max(rho, 1e-9)):z.0f}"
            wrong = (layer, name) in failed
            style = "bold red" if wrong else "green"
            cells.append(Text("!" + text if wrong else text, style=style))
        table.add_row(str(layer), *cells)
    return table


def _short(name: str) -> str:
    """Shorten a tap's name to a column heading."""
    words = {
        "input_layernorm": "ln1",
        "post_attention_layernorm": "ln2",
        "post_attention": "res",
        "attn_scores": "scr",
        "attn_probs": "prb",
        "attn_context": "ctx",
        "gate_proj": "gat",
        "mlp_act": "act",
        "down_proj": "dwn",
        "input": "in",
        "output": "out",
    }
    return words.get(name, name.removesuffix("_proj").replace("_rope", "~"))


def _coverage_line(result: Result) -> str:
    absent = f", declared absent: {', '.join(result.absent)}" if result.absent else ""
    unmatched = f", unmatched {len(result.unmatched)}" if result.unmatched else ", none unmatched"
    return f"coverage: {result.compared} of {result.expected} taps compared{unmatched}{absent}"
