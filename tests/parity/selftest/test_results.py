"""Counting what a selftest found: nothing is dropped, and a crash is a miss."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

from records import row
from rich.console import Console
from terminals import check_verdict_last, terminal_lines, unreadable

from parity.result import CauseReport, Divergence
from parity.selftest.fault import Fault
from parity.selftest.harness import Outcome
from parity.selftest.report import show
from parity.selftest.results import CleanResult, Injection, SelftestResult, injection

FAULT = Fault(
    "R3",
    "theta falls back to a default",
    "1e4",
    "layers.0.q_rope",
    "rope-theta",
    flagged=("rope.inv_freq",),
)


def judged(tap: str = "layers.0.q_rope", **changes: Any) -> Outcome:
    flagged = changes.pop("flagged", ("rope.inv_freq",))
    first = Divergence(row(tap, failed=True, **changes), "upstream", flagged)
    return Outcome("divergent", first, CauseReport("rope-theta", "", "", confirmed=True))


def counted(*rows: Injection, clean: tuple[CleanResult, ...] = ()) -> dict[str, int]:
    return SelftestResult(list(rows), list(clean)).summary()


def test_a_fault_that_was_found_named_and_confirmed() -> None:
    found = injection(FAULT, judged())
    assert found.detected and found.located and found.named and found.confirmed
    assert counted(found) == {
        "kinds": 1,
        "injections": 1,
        "detected": 1,
        "located": 1,
        "named": 1,
        "confirmed": 1,
        "clean_runs": 0,
        "false_alarms": 0,
        "unheard": 0,
    }


def test_the_exact_tap_step_and_flags_are_asked_for() -> None:
    assert not injection(FAULT, judged("layers.0.k_rope")).located
    assert not injection(FAULT, judged(flagged=())).located
    assert not injection(FAULT, judged(mode="decode", step=1)).located


def test_an_equal_open_or_crashed_run_is_no_detection() -> None:
    rows = [
        injection(FAULT, Outcome("equal", None)),
        injection(FAULT, replace(judged(), verdict="inconclusive")),
        injection(FAULT, None, "ValueError: broken"),
    ]
    assert counted(*rows)["detected"] == counted(*rows)["located"] == 0
    assert len(SelftestResult(rows).misses) == 3 and not SelftestResult(rows).passed


def test_another_cause_is_not_named_and_a_right_one_need_not_be_confirmed() -> None:
    wrong = injection(
        FAULT, replace(judged(), cause=CauseReport("norm-eps", "", "", confirmed=True))
    )
    suspect = injection(FAULT, replace(judged(), cause=CauseReport("rope-theta", "", "")))
    nothing = injection(FAULT, replace(judged(), cause=None))
    sums = counted(wrong, suspect, nothing)
    assert (sums["named"], sums["confirmed"]) == (1, 0)
    assert len(SelftestResult([wrong, suspect, nothing]).unnamed) == 3


def test_kinds_are_counted_apart_from_injections() -> None:
    other = replace(FAULT, variant="1e6")
    third = replace(FAULT, family="R4", kind="rope scaling ignored")
    assert counted(*(injection(f, judged()) for f in (FAULT, other, third)))["kinds"] == 2


def test_whatever_is_not_equal_is_a_false_alarm() -> None:
    runs = tuple(
        CleanResult("clean twin", "base", "causal", "f64", "free", verdict)
        for verdict in ("equal", "divergent", "inconclusive", "error")
    )
    assert counted(clean=runs)["clean_runs"] == 4
    assert counted(clean=runs)["false_alarms"] == 3


def test_the_document_is_strict_json_with_a_row_for_each_run() -> None:
    alarm = CleanResult("compiled", "base", "causal", "f64", "free", "divergent", "logits")
    matrix = SelftestResult([injection(FAULT, judged()), injection(FAULT, None, "broken")], [alarm])
    document = json.loads(json.dumps(matrix.to_dict(), allow_nan=False))
    assert set(document) >= {"schema_version", "summary", "injections", "clean", "misses"}
    assert document["misses"] == [FAULT.id]
    assert [r["located"] for r in document["injections"]] == [True, False]
    assert document["injections"][0]["found"]["tap"] == "layers.0.q_rope"
    assert document["clean"][0]["false_alarm"] is True


def test_every_miss_and_alarm_is_listed_by_name() -> None:
    alarm = CleanResult("attention sinks", "peaked", "causal", "f32", "free", "divergent", "logits")
    matrix = SelftestResult(
        [
            injection(FAULT, judged()),
            injection(replace(FAULT, variant="1e5"), Outcome("equal", None)),
            injection(replace(FAULT, variant="1e6"), judged("logits")),
            injection(
                replace(FAULT, variant="1e7"), replace(judged(), cause=CauseReport("other", "", ""))
            ),
        ],
        [alarm],
    )
    console = Console(file=io.StringIO(), width=80)
    show(matrix, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert len(text.splitlines()) < 16
    assert re.search(r"R3 \W+ theta falls back to.* 4 \W+ 3 \W+ 2 \W+", text)
    assert text.startswith("3 of 4 injections of 1 kinds detected, 2 located")
    assert "1 false alarms in 1 clean runs" in text
    assert "NOT DETECTED: R3 theta falls back to a default [1e5;" in text
    assert "not located: R3 theta falls back to a default [1e6;" in text
    assert "cause other, expected rope-theta: R3 theta falls back to a default [1e7;" in text
    assert "FALSE ALARM: attention sinks [peaked causal f32 free]: logits" in text


def test_a_terminal_of_40_columns_shows_all_of_it() -> None:
    alarm = CleanResult("attention sinks", "peaked", "causal", "f32", "free", "divergent", "logits")
    matrix = SelftestResult(
        [injection(FAULT, judged()), injection(FAULT, Outcome("equal", None))], [alarm]
    )
    assert unreadable(lambda console: show(matrix, console)) == []
    check_verdict_last(lambda console: show(matrix, console))
    quiet = terminal_lines(lambda console: show(matrix, console, quiet=True), 200)
    assert quiet[0].startswith("1 of 2 injections of 1 kinds detected, 1 located, ")
    assert quiet[0].endswith("1 false alarms in 1 clean runs")
    assert [line.split()[0] for line in quiet[1:]] == ["NOT", "expected", "no", "FALSE"]
