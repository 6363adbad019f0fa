"""The tables on a terminal."""

from __future__ import annotations

from rich.console import Console

from jaxllama.bench.result import BenchResult
from jaxllama.bench.variants import FLOOR, OURS
from jaxllama.command_line.console import SafeTable
from jaxllama.command_line.layout import make_table, print_table, say
from jaxllama.memory import size_in_words


def show(result: BenchResult, console: Console) -> None:
    """Print what a run has found: ratios last, which are the result.

    Args:
        result: the run.
        console: where to.
    """
    rounds = {len(t.seconds) for p in result.variants for t in p.timings.values()}
    counts = f"{min(rounds)} to {max(rounds)}" if len(rounds) > 1 else f"{max(rounds, default=0)}"
    label, parameters = result.checkpoint["label"], result.checkpoint["parameters"]
    say(
        console,
        (
            f"{label}: {parameters:,} parameters; medians of {counts} interleaved rounds",
            f"machine: {result.machine['line']}",
        ),
    )
    for title, table in (
        ("tokens a second", _speeds(result)),
        ("measured once; nothing compiled is kept from before", _costs(result)),
        (f"{OURS} against others: above 1 it is better; of a floor, the share", _ratios(result)),
    ):
        say(console, ["", title])
        print_table(console, table)
    say(console, (f"note: {note}" for note in result.notes()))


def _speeds(result: BenchResult) -> SafeTable:
    names = list(dict.fromkeys(p.variant for p in result.variants))
    table = make_table(gap=2, frame=None)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for measure in result.measures:
        cells = (result.speed(measure, name) for name in names)
        table.add_row(measure.name, *("-" if c is None else figure(c.median) for c in cells))
    return table


def _costs(result: BenchResult) -> SafeTable:
    columns = ("", "first token", "compiling", "peak memory", "of it loading")
    table = make_table(gap=2, frame=None)
    for n, name in enumerate(columns):
        table.add_column(name, justify="right" if n else "left")
    for one in result.variants:
        if one.variant == FLOOR or one.peak_bytes is None:
            continue
        compiled = [t.compile_seconds for t in one.timings.values()]
        known = [seconds for seconds in compiled if seconds is not None]
        first = one.first_token_seconds
        table.add_row(
            f"{one.variant} {one.dtype}",
            "-" if first is None else f"{first:.1f} s",
            f"{sum(known):.1f} s of {len(known)}" if known else "-",
            size_in_words(one.peak_bytes),
            "-" if one.loaded_bytes is None else size_in_words(one.loaded_bytes),
        )
    return table


def _ratios(result: BenchResult) -> SafeTable:
    table = make_table(gap=2, frame=None)
    table.add_column("")
    for name in ("median", "quartiles", "rounds"):
        table.add_column(name, justify="right")
    for name, ratio in result.ratios().items():
        if ratio.rounds > 1 or name.split("_")[0] in ("prefill", "decode"):
            quartiles = f"{ratio.low:.2f} to {ratio.high:.2f}"
            table.add_row(name, f"{ratio.median:.2f}", quartiles, str(ratio.rounds))
    return table


def figure(value: float) -> str:
    """Return a speed as people say it.

    >>> figure(7.26), figure(41.63), figure(512.4)
    ('7.26', '41.6', '512')
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
