"""A terminal of any width: tables become lines, and a verdict does not scroll away."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from terminals import check_verdict_last, terminal_lines, unreadable

from jaxllama.command_line.layout import make_table, print_table, say, with_verdict

NAMES = ("tensor", "seconds", "bytes")


def wide_table(folding: bool = False) -> Table:
    table = make_table("what was measured")
    for name in NAMES:
        table.add_column(name, no_wrap=not folding, overflow="fold" if folding else "ellipsis")
    table.add_row("layers.12.post_attention", "12.5", "123,456,789", style="red")
    return table


def test_a_table_that_does_not_fit_becomes_lines() -> None:
    assert terminal_lines(lambda c: print_table(c, wide_table()), 40) == [
        "what was measured",
        "- tensor layers.12.post_attention,",
        "seconds 12.5, bytes 123,456,789",
    ]
    assert len(terminal_lines(lambda c: print_table(c, wide_table()), 80)) > 3
    assert unreadable(lambda c: print_table(c, wide_table())) == []
    # Control: as it is, its figures are cut.
    assert unreadable(lambda c: c.print(wide_table())) != []


def test_of_several_the_first_that_fits_is_printed() -> None:
    small = make_table("less")
    small.add_column("seconds")
    small.add_row("12.5")
    shown = [terminal_lines(lambda c: print_table(c, wide_table(), small), w)[0] for w in (80, 40)]
    assert [title.strip() for title in shown] == ["what was measured", "less"]


def test_what_may_be_folded_is_folded_before_a_table_is_given_up() -> None:
    lines = terminal_lines(lambda c: print_table(c, wide_table(folding=True)), 40)
    assert max(map(len, lines)) <= 40 and not any(line.startswith("- ") for line in lines)
    assert len(terminal_lines(lambda c: print_table(c, wide_table(folding=True)), 20)) > 3


def test_a_verdict_is_said_again_where_a_screen_is_full() -> None:
    def show(console: Console) -> None:
        with_verdict(console, "equal: all", lambda: say(console, [f"line {i}" for i in range(9)]))

    check_verdict_last(show)
    piped = Console(file=io.StringIO(), width=40)
    show(piped)
    assert isinstance(piped.file, io.StringIO)
    assert piped.file.getvalue().count("equal: all") == 1
