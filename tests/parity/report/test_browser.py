"""The report in a real browser: it draws, answers the pointer, and fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import REMEDY, find_browser
from page_checks import barriers, check_in_every_state, check_on_paper, clipped, on_paper, unreached
from pages import Visit, opened_browser
from playwright.sync_api import Browser, Page
from records import result, row
from snapshots import CAUSE, SCRIPT, decoded, leaking, pictured, rotated

from parity.comparison.quality import LayerLoss, QualityFigures, QualityReport
from parity.report import html_file
from parity.report.sprites import VIOLATION

ROOT = Path(__file__).parents[3]
READABLE_SCRIPT = SCRIPT.replace(" ", "␣")
VERMILION = tuple(int(VIOLATION[i : i + 2], 16) for i in (1, 3, 5))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "leaking.html"
    html_file.write(pictured(leaking, cause=CAUSE), path)
    return path


@pytest.fixture(scope="module")
def visit(browser: Browser, report: Path) -> Iterator[Visit]:
    opened = Visit(browser, report)
    yield opened
    opened.page.close()


def test_it_renders_without_complaint(visit: Visit) -> None:
    assert visit.complaints == []
    assert visit.page.locator("h1").inner_text().split() == [
        "divergent",
        "first",
        "at",
        "layers.1.attn_probs",
    ]
    box = visit.page.locator("#cause").bounding_box()
    assert box is not None and box["y"] + box["height"] < 900, "the cause is on the first screen"
    assert "theta 1e+06" in visit.page.locator("#cause").inner_text()
    assert visit.page.locator(".run:visible").count() == 1
    assert visit.page.locator("svg:visible circle").count() > 0


def test_nothing_is_fetched(visit: Visit, browser: Browser, report: Path, tmp_path: Path) -> None:
    assert visit.fetched == []
    planted = '<img src="http://127.0.0.1:9/seen.png">'
    text = report.read_text(encoding="utf-8").replace("</header>", f"</header>{planted}")
    (tmp_path / "held.html").write_text(text, encoding="utf-8")
    held = Visit(browser, tmp_path / "held.html")
    held.page.wait_for_timeout(200)
    assert any("Content Security Policy" in said for said in held.complaints)
    (tmp_path / "free.html").write_text(
        text.replace("default-src", "x-src").replace("img-src", "y-src")
    )
    free = Visit(browser, tmp_path / "free.html")
    free.page.wait_for_timeout(200)
    assert free.fetched == ["http://127.0.0.1:9/seen.png"]
    held.page.close()
    free.page.close()


def test_a_token_like_a_script_is_text(visit: Visit) -> None:
    said = visit.hover(visit.tile("weights"), 2, 3)
    assert f"key 2 “{READABLE_SCRIPT}”" in said and "query 3 “↵”" in said
    assert visit.page.locator("#tip *").count() == 0
    assert visit.page.title() != "run"
    planted = "document.getElementById('tip').innerHTML = '<b>markup</b>'"
    visit.page.evaluate(planted)
    assert visit.page.locator("#tip *").count() == 1, "markup would be noticed"


def test_the_pointer_reads_weights(visit: Visit) -> None:
    leak = visit.tile("weights", 3)  # three tiles a head: this is head 1's first
    said = visit.hover(leak, 4, 2)
    assert said.startswith("layer 1, head 1\nquery 2 ") and "key 4 " in said
    assert "jaxllama about 0.25\nPyTorch hidden\ndifference about 0.25" in said
    lost = visit.hover(leak, 0, 2)
    assert "jaxllama exactly 0" in lost and "PyTorch about" in lost
    assert "jaxllama hidden\nPyTorch hidden\ndifference hidden" in visit.hover(leak, 4, 1)


def test_the_pointer_reads_the_grids_and_masks(visit: Visit) -> None:
    said = visit.hover(visit.tile("operators"), 8, 1)
    assert said.startswith("layers.1.attn_probs\nrho ") and "1 hidden keys carry weight" in said
    said = visit.hover(visit.tile("tokens"), 2, 2)
    assert said.startswith(f"layer 1, row 0, token 2 “{READABLE_SCRIPT}”\nrho ")
    assert " in attn_probs\nlimit 256" in said
    assert "row 1, token 0 " in visit.hover(visit.tile("tokens"), 6, 2)
    assert "a pad: not compared" in visit.hover(visit.tile("tokens"), 10, 2)
    said = visit.hover(visit.tile("mask"), 4, 2)
    assert said.endswith("intended: hidden\nobserved: hidden\nobserved: visible")


def test_violations_have_a_colour_and_a_layer_of_their_own(visit: Visit) -> None:
    leak = visit.tile("weights", 3)
    assert (visit.pixels(leak, 4, 2) == VERMILION).all()
    assert not (visit.pixels(leak, 1, 2) == VERMILION).all(-1).any()
    visit.page.locator("#marks").click()
    assert not (visit.pixels(leak, 4, 2) == VERMILION).all(-1).any()
    visit.page.locator("#marks").click()


def test_hidden_cells_are_hatched_and_others_are_plain(visit: Visit) -> None:
    maps = visit.tile("weights")
    assert len(np.unique(visit.pixels(maps, 4, 1).reshape(-1, 3), axis=0)) > 1
    assert len(np.unique(visit.pixels(maps, 1, 3).reshape(-1, 3), axis=0)) == 1


def test_another_run_can_be_chosen(visit: Visit) -> None:
    buttons = visit.page.locator("[data-run]")
    before = visit.page.locator(".run:visible").get_attribute("id")
    buttons.nth(1).click()
    after = visit.page.locator(".run:visible").get_attribute("id")
    assert after != before and buttons.nth(1).get_attribute("aria-pressed") == "true"
    buttons.nth(0).click()
    assert visit.page.locator(".run:visible").get_attribute("id") == before


def test_everyone_can_read_it_in_every_state(visit: Visit) -> None:
    check_in_every_state(visit.page)
    for width in (360, 768):
        visit.page.set_viewport_size({"width": width, "height": 800})
        assert clipped(visit.page) == []
    visit.page.set_viewport_size({"width": 1280, "height": 900})
    assert visit.complaints == []


# A check, and what is done to the page for it to fire.
SPOILT: list[tuple[Callable[[Page], list[str]], str]] = [
    (barriers, "document.querySelector('#marks').textContent = ''"),
    (barriers, "document.querySelector('.map').removeAttribute('aria-label')"),
    (barriers, "document.querySelector('.muted').style.color = '#ccc'"),
    (clipped, "document.querySelector('.ylabels span').textContent = 'layer '.repeat(30)"),
    (clipped, "document.querySelector('.xlabels').style.cssText = 'height:40px;overflow:clip'"),
    (clipped, "document.querySelector('.places span').style.left = '99%'"),
    (clipped, "document.querySelector('h1').style.cssText = 'width:3000px'"),
    (unreached, "document.querySelector('.run:not([hidden]) .tile').removeAttribute('tabindex')"),
    (unreached, "document.querySelector('.chip').title = 'more'"),
]


def test_each_check_fires(visit: Visit) -> None:
    for found, spoilt in SPOILT:
        visit.page.evaluate(spoilt)
        assert found(visit.page) != [], spoilt
        visit.page.reload()
    wide = "const e = document.querySelector('.scroll'); e.style.overflow = 'auto'"
    visit.page.evaluate(f"{wide}; e.firstElementChild.style.width = '2000px'")
    with pytest.raises(AssertionError, match="cut off on paper"):
        check_on_paper(visit.page)
    visit.page.reload()


def test_heatmaps_are_in_the_colours_of_the_theme_in_use(visit: Visit) -> None:
    """Of two cells the one that holds more is the further one from the paper."""

    def lightness() -> list[float]:
        maps = visit.tile("weights")
        return [float(visit.pixels(maps, x, y, side=3).mean()) for x, y in ((0, 0), (1, 3))]

    said = [visit.hover(visit.tile("weights"), x, y) for x, y in ((0, 0), (1, 3))]
    large, small = (float(re.findall(r"jaxllama about ([\d.e-]+)", one)[0]) for one in said)
    assert large == 1 and small < 0.5
    light = lightness()
    visit.page.emulate_media(color_scheme="dark")  # while the page is open
    dark = lightness()
    leak = visit.tile("weights", 3)
    assert (visit.pixels(leak, 4, 2) == VERMILION).all(), "kept for what is wrong in both"
    assert visit.hover(visit.tile("weights"), 1, 3) == said[1], "what is read is of no colour"
    visit.page.emulate_media(color_scheme="light")
    assert light[0] < light[1] and dark[0] > dark[1]
    assert lightness() == light


def test_keys_read_what_the_pointer_reads(visit: Visit) -> None:
    down, right = ["ArrowDown"] * 2, ["ArrowRight"] * 2
    for kind, x, y in (("weights", 2, 2), ("operators", 2, 0), ("tokens", 2, 2), ("mask", 2, 2)):
        tile = visit.tile(kind)
        by_pointer = visit.hover(tile, x, y)
        visit.page.mouse.move(0, 0)
        assert visit.read_by_keys(tile, *right[:x], *down[:y]) == by_pointer != ""
        assert tile.locator(".cursor").is_visible()
        assert tile.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        back = visit.read_by_keys(tile, "End", "PageDown", "Home", "PageUp")
        assert back == visit.hover(tile, 0, 0)
        visit.page.mouse.move(0, 0)
        assert visit.read_by_keys(tile, "Escape") == ""
        visit.page.keyboard.press("Tab")
        assert not tile.locator(".cursor").is_visible()
        visit.hover(tile, x, y)
        visit.page.keyboard.press("Escape")
        assert not visit.page.locator("#tip").is_visible()
    chart = visit.page.locator(".points:visible").first
    first = visit.read_by_keys(chart, "Home")
    assert re.match(r"\S+: error .*, noise .*, limit ", first)
    assert visit.read_by_keys(chart, "ArrowRight") != first
    assert visit.page.locator("circle.at").count() == 1


def test_the_first_stop_of_the_keys_leads_past_the_heading(visit: Visit) -> None:
    visit.page.reload()
    visit.page.keyboard.press("Tab")
    skip = visit.page.locator(".skip")
    assert skip.evaluate("e => e === document.activeElement")
    box = skip.bounding_box()
    assert box is not None and box["x"] >= 0, "it is seen once it is come to"
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "main"
    visit.page.locator("#marks").focus()
    visit.page.keyboard.press("Space")
    assert visit.page.locator("#marks").get_attribute("aria-pressed") == "false"
    visit.page.keyboard.press("Space")
    assert visit.page.locator("#marks").get_attribute("aria-pressed") == "true"


def test_figures_say_what_they_found(visit: Visit) -> None:
    said = " ".join(
        one.get_attribute("aria-label") or "" for one in visit.page.get_by_role("img").all()
    )
    for words in (
        "each operator in each layer: 1 of 36 beyond their limit, most layers.1.attn_probs",
        "error of each layer's output over the noise band: ",
        "attention of layer 1, head 1, jaxllama: the sides differ by up to 2.5e-01, 2 violations",
        "attention of layer 1, head 0, PyTorch: the sides differ by up to ",
        "mask, observed: who carries weight in layer 1, row 0, 2 violations",
        "mask, intended, row 0",
    ):
        assert words in said, (words, said)


def test_a_wide_matrix_of_runs_is_whole_on_paper(browser: Browser, tmp_path: Path) -> None:
    names = [f"a_scenario_with_a_long_name_{i}" for i in range(9)]
    found = result(
        [row("layers.0.q_proj", scenario=name, failed=name[-1] == "3") for name in names]
    )
    html_file.write(found, tmp_path / "many.html")
    visit = Visit(browser, tmp_path / "many.html")
    check_on_paper(visit.page)
    with on_paper(visit.page):
        said = visit.page.locator(".matrix button").all_inner_texts()
        assert said[2:4] == [
            f"{names[2]}, free in f64: equal, rho 0.5",
            f"{names[3]}, free in f64: diverges, rho ✗ 1e+06",
        ]
    visit.page.evaluate("document.querySelector('.many').classList.remove('many')")
    with pytest.raises(AssertionError):
        check_on_paper(visit.page)
    visit.page.close()


def test_what_rounding_costs_can_be_read_by_everyone(browser: Browser, tmp_path: Path) -> None:
    layers = tuple(LayerLoss(i, 1e-2, 2e-2, 3e-3, 4e-3) for i in range(3))
    lane = QualityFigures("f32", 64, 4e-4, 9e-4, 0.95, 63, 439.7, 441.6, layers)
    measured = QualityReport("int8", None, 410_400, 740_928, (lane,))
    html_file.write(result([], quality=measured), tmp_path / "quant.html")
    visit = Visit(browser, tmp_path / "quant.html")
    check_in_every_state(visit.page)
    visit.page.evaluate("document.querySelector('html').removeAttribute('lang')")
    assert barriers(visit.page) != []
    visit.page.close()


def test_without_scripts_the_verdict_is_still_there(browser: Browser, tmp_path: Path) -> None:
    html_file.write(pictured(rotated, cause=CAUSE), tmp_path / "out.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "out.html").as_uri())
    assert page.locator("h1").is_visible() and page.locator(".run:visible").count() == 1
    context.close()


def test_a_missing_browser_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    assert find_browser() is None and "make browser" in REMEDY


def test_what_make_asks_needs_the_standard_library_alone() -> None:
    """On a new machine nothing is installed when it looks for a browser."""
    code = "import sys; sys.path.insert(0, 'tests/support'); from {} import find_browser"
    bare = [sys.executable, "-I", "-S", "-c"]
    assert not subprocess.run([*bare, code.format("browser")], cwd=ROOT).returncode
    assert subprocess.run([*bare, code.format("pages")], cwd=ROOT).returncode


def test_a_run_through_the_cache_has_maps_of_its_own(browser: Browser, tmp_path: Path) -> None:
    whole, pieces = pictured(), decoded()
    sheets = pieces.snapshots[0].sheets
    sheets[0] = replace(sheets[0], start=3)
    rows, snapshots = whole.rows + pieces.rows, whole.snapshots + pieces.snapshots
    html_file.write(result(rows, snapshots=snapshots, texts=whole.texts), tmp_path / "both.html")
    visit = Visit(browser, tmp_path / "both.html")
    shown = visit.page.locator(".pass:visible summary").first
    assert "through the cache" not in shown.inner_text()
    visit.page.locator("tr", has_text="decode").locator("button").click()
    assert "f64 causal, through the cache, row 0, from query 3 on" in shown.inner_text()
    assert visit.hover(visit.tile("weights"), 1, 2) == "layer 0: kept from query 3 on"
    said = visit.hover(visit.tile("weights"), 2, 4)
    assert said.startswith("layer 0, head 0\nquery 4 ") and "jaxllama about" in said
    assert visit.complaints == [] and not visit.page.locator("#no-pass").is_visible()
    visit.page.close()
