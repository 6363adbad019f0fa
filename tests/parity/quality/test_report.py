"""What quality says to a terminal and on its page; figures are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from page_checks import barriers, check_in_every_state
from pages import Visit, opened_browser
from terminals import check_verdict_last, terminal_lines, unreadable

from parity.quality import page, terminal
from parity.quality.bootstrap import Interval
from parity.quality.report import QualityChange, WrittenText
from parity.quality.verdict import MeasuredChange

LONG = "a text that goes on " * 40


def measured(name: str, before: float, after: float, verdict: str) -> MeasuredChange:
    change = after - before
    return MeasuredChange(
        name=name,
        title=name,
        lower_is_better=True,
        signature=f"{name}|version:1",
        examples=60,
        before=before,
        after=after,
        before_interval=Interval(before - 0.25, before + 0.25),
        after_interval=Interval(after - 0.25, after + 0.25),
        change=change,
        interval=Interval(change - 0.125, change + 0.125),
        verdict=verdict,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def report() -> QualityChange:
    return QualityChange(
        measures=[
            measured("perplexity", 12.5, 17.75, "worse"),
            measured("BLEU", 31.25, 31.375, "no difference"),
        ],
        checkpoint="model <b>",
        change="without the padding mask",
        figures=None,
        data="texts.jsonl",
        examples=60,
        prompts=60,
        tokens=7000,
        layout="padded",
        dtype="f32",
        length=512,
        seed=0,
        fail_on=("perplexity>1%",),
        written=[WrittenText(1, "Once", LONG, LONG, "<script>")] * 3,
        notes=["a note"],
        environment={"backend": "cpu", "device": "cpu", "versions": {"jax": "1.2.3"}},
    )


def test_a_terminal_of_40_columns_shows_all_of_it(report: QualityChange) -> None:
    assert unreadable(lambda console: terminal.show(report, console)) == []
    check_verdict_last(lambda console: terminal.show(report, console))


def test_quiet_is_the_verdict_and_what_failed(report: QualityChange) -> None:
    lines = terminal_lines(lambda console: terminal.show(report, console, quiet=True), 300)
    assert [line.split(":")[0] for line in lines] == ["worse", "failed"]
    passing = replace(report, fail_on=())
    lines = terminal_lines(lambda console: terminal.show(passing, console, quiet=True), 300)
    assert [line.split(":")[0] for line in lines] == ["worse"]


def test_everyone_can_read_its_page_in_every_state(report: QualityChange, tmp_path: Path) -> None:
    page.write(report, tmp_path / "quality.html")
    with opened_browser() as browser:
        visit = Visit(browser, tmp_path / "quality.html")
        check_in_every_state(visit.page)
        (bar, _) = visit.page.get_by_role("img").all()
        said = bar.get_attribute("aria-label")
        assert said == "the change of perplexity lies from +5.12 to +5.38"
        assert visit.complaints == [] and visit.fetched == []
        visit.page.evaluate("document.querySelector('.whisker').removeAttribute('aria-label')")
        assert barriers(visit.page) != []
        one = replace(report.measures[0], before=None, change=None, interval=None)
        alone = replace(report, change="", measures=[one])
        page.write(alone, tmp_path / "alone.html")
        visit = Visit(browser, tmp_path / "alone.html")
        assert barriers(visit.page) == []
