"""The page of a run: it fetches nothing, takes names for text, and says its bars in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_results import measured, result
from page_checks import check_in_every_state
from pages import PATIENCE_MS, opened_browser
from terminals import terminal_lines, unreadable

from jaxllama.bench.page import page, panels
from jaxllama.bench.result import BenchResult
from jaxllama.bench.terminal import show


@pytest.fixture(scope="module")
def found() -> BenchResult:
    return result(
        measured("jaxllama", 1.0),
        measured("eager", 2.0),
        measured("tunix", 4.0, tokens=8),
        measured("floor", 0.5),
    )


def test_bars_are_shares_of_the_longest(found: BenchResult) -> None:
    (panel,) = panels(found)
    assert [(bar.name, bar.at, bar.kind) for bar in panel.bars] == [
        ("floor", 100.0, "floor"),
        ("jaxllama", 50.0, "ours"),
        ("eager", 25.0, ""),
        ("tunix", 12.5, ""),
    ]
    assert "eager 256 tokens/s (256 to 256)" in panel.spoken
    assert panels(result()) == []


def test_names_are_text(found: BenchResult) -> None:
    text = page(found)
    assert "model &lt;script&gt;" in text and "<script" not in text
    assert "Processor <i>" not in text and "jaxllama bench &lt;b&gt;" in text
    assert "\u202e" not in page(result(command="\u202e"))


def test_a_browser_shows_it_at_any_width(found: BenchResult, tmp_path: Path) -> None:
    file = tmp_path / "bench.html"
    file.write_text(page(found))
    said: list[str] = []
    with opened_browser() as browser:
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.on("console", lambda message: said.append(message.text))
        shown.on("request", lambda request: said.append(request.url))
        shown.goto(file.as_uri())
        check_in_every_state(shown)
        for width in (1280, 400):
            shown.set_viewport_size({"width": width, "height": 900})
            (drawn,) = shown.get_by_role("img").all()
            assert drawn.get_attribute("aria-label", timeout=PATIENCE_MS).startswith(
                "Prefill of 512"
            )
            bars = [bar.bounding_box() for bar in shown.locator(".bar").all()]
            widths = [round(bar["width"] / bars[0]["width"], 2) for bar in bars if bar]
            assert widths == pytest.approx([1, 0.5, 0.25, 0.125], abs=0.02)
    assert said == [file.as_uri()]


def test_a_terminal_of_40_columns_shows_all_of_it(found: BenchResult) -> None:
    assert unreadable(lambda console: show(found, console)) == []
    lines = terminal_lines(lambda console: show(found, console), 120)
    assert any(line.split() == ["prefill_512", "512", "256", "128", "1,024"] for line in lines) or [
        line for line in lines if line.startswith("prefill_512")
    ]
