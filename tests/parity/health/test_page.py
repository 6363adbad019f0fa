"""The page of health in a real browser: it draws, answers the pointer, and fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from page_checks import check_in_every_state
from pages import Visit, opened_browser
from playwright.sync_api import Browser, Locator
from terminals import check_verdict_last, terminal_lines, unreadable
from unhealthy import Edited, leaking, on_column

import parity
from parity.health import page, pictures, terminal
from parity.health.report import HealthReport
from parity.report.page_parts import MOST_BYTES
from parity.report.sprites import VIOLATION

VERMILION = tuple(int(VIOLATION[i : i + 2], 16) for i in (1, 3, 5))
SCRIPT = "<script>document.title = 'run'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report() -> HealthReport:
    edits = {"layers.2.attn_probs": leaking(5, 20, 41), "layers.3.attn_probs": on_column(1, 9)}
    found = parity.check_health("tiny", subject=Edited(edits), length=60)
    texts = [[SCRIPT if at == 41 else text for at, text in enumerate(row)] for row in found.texts]
    return replace(found, texts=texts)


@pytest.fixture(scope="module")
def file(report: HealthReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "health.html"
    page.write(report, path)
    return path


@pytest.fixture(scope="module")
def visit(browser: Browser, file: Path) -> Iterator[Visit]:
    opened = Visit(browser, file)
    yield opened
    opened.page.close()


def tile(visit: Visit, kind: str, number: int = 0) -> Locator:
    return visit.page.locator(f"[data-kind={kind}]:visible").nth(number)


def test_it_says_what_is_wrong_first_and_fetches_nothing(visit: Visit, file: Path) -> None:
    assert visit.complaints == [] and visit.fetched == []
    assert visit.page.locator("h1").inner_text().split()[:2] == ["faulty", "tiny,"]
    findings = visit.page.locator(".findings li")
    assert findings.nth(0).inner_text().startswith("error leakage: weight on hidden keys")
    assert "What to do." in findings.nth(0).inner_text()
    assert findings.nth(1).inner_text().startswith("warning single-column: ")
    assert file.stat().st_size <= MOST_BYTES
    assert visit.page.title() != "run"


def test_grids_have_all_heads_and_the_pointer_reads_them(
    visit: Visit, report: HealthReport
) -> None:
    heads = report.layers[3].heads
    assert heads is not None
    said = visit.hover(tile(visit, "grid", 0), 1, 3)
    assert said == f"layer 3, head 1\nentropy {float(f'{heads.entropy[1]:.3g}'):g}"
    leak = tile(visit, "grid", 3)
    assert visit.hover(leak, 5, 2) == "layer 2, head 5\nleakage 0.02"
    assert (visit.pixels(leak, 5, 2, side=15) == VERMILION).all(-1).any()
    assert visit.hover(leak, 4, 2) == "layer 2, head 4\nleakage 0"
    assert not (visit.pixels(leak, 4, 2, side=15) == VERMILION).all(-1).any()


def test_flagged_heads_are_drawn_in_full_with_their_row_sums(visit: Visit) -> None:
    captions = visit.page.locator(".maps figcaption").all_inner_texts()
    assert captions == ["layer 2, head 5, row 0 leakage", "layer 3, head 1, row 0 single-column"]
    said = visit.hover(tile(visit, "head", 0), 41, 20)
    assert said.startswith("layer 2, head 5\nquery 20 “") and "weight about 0.02" in said
    assert f"key 41 “{SCRIPT.replace(' ', '␣')}”" in said
    assert "its row is off 1 by " in said
    assert (visit.pixels(tile(visit, "head", 0), 41, 20, side=3) == VERMILION).all()
    assert "weight hidden" in visit.hover(tile(visit, "head", 0), 42, 20)
    assert "query 20 “" in visit.hover(tile(visit, "off", 0), 0, 20)
    assert visit.page.locator("#tip *").count() == 0


def test_the_mask_is_shown_as_intended_and_as_observed(visit: Visit) -> None:
    said = visit.hover(tile(visit, "mask", 1), 41, 20)
    assert said.endswith("intended: hidden\nobserved: visible")
    assert visit.hover(tile(visit, "mask", 1), 42, 20).endswith("hidden\nobserved: hidden")
    assert (visit.pixels(tile(visit, "mask", 1), 41, 20, side=3) == VERMILION).all()
    assert "1 hidden cells carry weight" in visit.page.locator("#attention").inner_text()


def test_every_layer_has_a_sheet(visit: Visit, report: HealthReport) -> None:
    assert visit.page.locator("#attention details").count() == len(report.layers)
    said = visit.hover(tile(visit, "small", 2), 0, 30)
    assert said.startswith("layer 0, head 2\nquery 30 “")
    assert visit.page.locator("#charts circle").count() == 5 * len(report.layers)


def test_everyone_can_read_it_in_every_state(visit: Visit) -> None:
    check_in_every_state(visit.page)
    assert visit.complaints == []


def test_keys_read_what_the_pointer_reads(visit: Visit) -> None:
    for kind in ("grid", "head", "mask"):
        one = tile(visit, kind)
        by_pointer = visit.hover(one, 1, 2)
        visit.page.mouse.move(0, 0)
        by_keys = visit.read_by_keys(one, "ArrowRight", "ArrowDown", "ArrowDown")
        assert by_keys == by_pointer != ""
    small = visit.read_by_keys(tile(visit, "small", 2), "End", "PageDown")
    assert small.startswith("layer 0, head 2\nquery 10 “") and small.endswith("weight hidden")
    chart = visit.page.locator(".points").first
    assert visit.read_by_keys(chart, "End", "ArrowDown").startswith("layer 4: mean cosine ")


def test_a_full_page_leaves_out_and_says_so(
    report: HealthReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page.page(report)
    assert "Left out" not in whole
    monkeypatch.setattr(page, "MOST_BYTES", len(whole.encode()) - 3000)
    small = page.page(report)
    assert len(small.encode()) <= page.MOST_BYTES and "Left out, for want of room" in small


@pytest.mark.parametrize(("most", "said"), [(6, False), (4, True)])
def test_heads_are_left_out_of_a_sheet_where_there_are_more(
    most: int, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (page, pictures):
        monkeypatch.setattr(module, "MOST_HEADS", most, raising=False)
    text = page.page(parity.check_health("tiny", length=8, gradients=False))
    assert ("; of 6 heads the first 4" in text) is said and "of more than" not in text


def test_what_is_not_shown_is_said(tmp_path: Path) -> None:
    blind = parity.check_health("tiny", subject="blockwise", length=20, gradients=False)
    assert "The subject shows no attention weights." in page.page(blind)


def test_a_terminal_of_40_columns_shows_all_of_it(report: HealthReport) -> None:
    assert unreadable(lambda console: terminal.show(report, console)) == []
    check_verdict_last(lambda console: terminal.show(report, console))


def test_quiet_is_the_verdict_and_the_gravest_finding(report: HealthReport) -> None:
    lines = terminal_lines(lambda console: terminal.show(report, console, quiet=True), 300)
    assert [line.partition(":")[0] for line in lines] == ["faulty", "error", "more"]
    sound = replace(report, findings=[one for one in report.findings if one.severity[0] == "i"])
    lines = terminal_lines(lambda console: terminal.show(sound, console, quiet=True), 300)
    assert len(lines) == 1 and lines[0].startswith("healthy: ")
