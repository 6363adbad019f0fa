"""The documentation site: links lead somewhere, every cause, rule, metric and exit code has a page.

Sphinx itself runs in `make docs`; here is what is laid out for it, and the reading of what it
built.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from build_docs import lay_out
from docsite import docstrings, drawing, gallery, links, reference
from docsite.stage import ROOT, BrokenLinks, Stage

import parity.commands.catalogue as names
from parity.diagnose.cause import catalogue as causes
from parity.health.rule import catalogue as health_rules


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return lay_out(tmp_path_factory.mktemp("site"))


# What is laid out


def test_everything_has_a_page(site: Stage) -> None:
    assert reference.missing(site) == []
    for name in (*causes(), *health_rules()):
        assert name in reference.findings("causes") | reference.findings("health"), name


def test_a_page_that_is_missing_is_noticed(site: Stage) -> None:
    place = site.out / "metrics" / "rho.md"
    text = place.read_text()
    place.unlink()
    assert reference.missing(site) == ["metrics/rho.md"]
    place.write_text(text)


def test_a_cause_shows_its_finding(site: Stage) -> None:
    page = (site.out / "causes" / "mask-strict.md").read_text()
    assert "first divergence: " in page and page.count("<svg") == 3  # two masks and the taps
    assert "hidden that should be seen" in page


def test_metrics_and_codes_link_to_each_other_as_pages(site: Stage) -> None:
    assert "[error](error.md)" in (site.out / "metrics" / "rho.md").read_text()
    assert "(130.md)" in (site.out / "exit-codes" / "index.md").read_text()


def test_all_pages_are_in_the_navigation(site: Stage) -> None:
    listed: set[str] = set()
    pages = {
        file.relative_to(site.out).with_suffix("").as_posix() for file in site.out.rglob("*.md")
    }
    for page in pages:
        text = (site.out / f"{page}.md").read_text()
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in filter(None, block.splitlines()):
                if not line.startswith(":"):
                    found = [
                        p.relative_to(site.out) for p in (site.out / page).parent.glob(f"{line}.md")
                    ]
                    assert found, f"{page}: {line}"
                    listed |= {path.with_suffix("").as_posix() for path in found}
    orphans = {page for page in pages if page.startswith("source/")}
    assert pages - listed - orphans == {"index"}


def test_every_report_is_in_the_gallery(site: Stage) -> None:
    page = (site.out / "gallery.md").read_text()
    assert all(f'href="gallery/{report.file}"' in page for report in gallery.REPORTS)


# Links


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for path, text in {
        "README.md": "[d](docs/) [n](docs/noise.md#casts) [x](parity/a.py) `[no](link.md)`\n",
        "docs/README.md": "[up](../README.md) [there](https://example.org) ![p](p.svg)\n",
        "docs/noise.md": "# Noise\n\n```sh\n[not](a-link.md)\n```\n",
        "docs/p.svg": "<svg/>",
        "parity/a.py": "x = '```'\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_links_lead_within_the_site(small: Path, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "out", small)
    stage.lay_out()
    readme = (stage.out / "project/README.md").read_text()
    assert (
        readme
        == "[d](../index.md) [n](../noise.md#casts) [x](../source/parity/a-py.md) `[no](link.md)`\n"
    )
    index = (stage.out / "index.md").read_text()
    assert index == "[up](project/README.md) [there](https://example.org) ![p](files/docs/p.svg)\n"
    assert "[not](a-link.md)" in (stage.out / "noise.md").read_text()
    assert "````python\nx = '```'\n````" in (stage.out / "source/parity/a-py.md").read_text()


@pytest.mark.parametrize("target", ["nowhere.md", "../../out.md", "parity/b.py"])
def test_a_broken_link_is_noticed(target: str, small: Path, tmp_path: Path) -> None:
    (small / "docs/noise.md").write_text(f"[a]({target})")
    with pytest.raises(BrokenLinks, match=rf"docs/noise.md: {re.escape(target)}"):
        Stage(tmp_path / "out", small).lay_out()


SOUND = '<h1 id="top">A</h1><a href="b.html#two">b</a><a href="#top">t</a><img src="p.png"><a href="https://example.org/x">e</a>'


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('<a href="c.html">c</a>', "a.html: c.html: no such file"),
        ('<a href="b.html#three">b</a>', "a.html: b.html#three: no 'three' on that page"),
        ('<a href="../b.html">b</a>', "a.html: ../b.html: outside of the site"),
        ('<a href=".">b</a>', "a.html: .: a folder, which a browser lists or refuses"),
        ('<img src="q.png">', "a.html: q.png: no such file"),
        (
            '<script src="https://cdn.example/x.js"></script>',
            "a.html: fetches https://cdn.example/x.js",
        ),
        (
            '<link rel="preload stylesheet" href="//cdn.example/x.css">',
            "a.html: fetches //cdn.example/x.css",
        ),
        (
            "<style>@import 'https://a.example/f.css'</style>",
            "a.html: fetches https://a.example/f.css",
        ),
        (
            '<p style="background: url(http://a.example/b.png)">',
            "a.html: fetches http://a.example/b.png",
        ),
        (
            '<img srcset="p.png 1x, http://a.example/c.png 2x">',
            "a.html: fetches http://a.example/c.png",
        ),
    ],
)
def test_what_a_browser_would_stumble_over_is_noticed(
    wrong: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "b.html").write_text('<a name="two"></a>')
    (tmp_path / "p.png").write_bytes(b"")
    (tmp_path / "a.html").write_text(SOUND)
    found = links.check(tmp_path)
    assert found.problems == []
    assert list(links.lines(found)) == ["https://example.org/x\ta.html"]
    (tmp_path / "a.html").write_text(SOUND + wrong)
    assert links.check(tmp_path).problems == [said]


def test_a_style_sheet_fetches_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(
        "a { src: url('https://fonts.example/f.woff2') } b { src: url(f.woff2) }"
    )
    assert links.check(tmp_path).problems == ["a.css: fetches https://fonts.example/f.woff2"]


# Pictures


def test_pictures_are_whole() -> None:
    drawn = [
        drawing.mask(reference.both(["#..", "#!.", "-##"]), "a < b"),
        drawing.flow(
            ["embed", "layers.0.q_proj", "logits"], [-1, 2, np.nan], [np.nan, 3, -2], "flow"
        ),
        drawing.heads(np.eye(3), np.eye(3) > 0, "heads"),
        drawing.bars([("layer 0", 1.0, False), ("layer 1", 0.0, True)], "bars"),
        drawing.attention(["90", "1j"], "map"),
    ]
    for one in drawn:
        ElementTree.fromstring(one)
        assert "\n\n" not in one and "nan" not in one and "inf" not in one
    assert drawn[0].count('class="leaked"') == drawn[0].count('class="lost"') == 1
    assert "first: layers.0.q_proj" in drawn[1]


def test_an_explained_text_is_shown_as_it_is() -> None:
    assert reference.plain("N*H < 2 of `a*b`") == r"N\*H \< 2 of `a*b`"


def test_docstrings_are_made_readable() -> None:
    done = doctest.testmod(docstrings)
    assert done.attempted == 2 and not done.failed


def test_the_lists_of_names_are_those_of_the_command() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == set(names.listed("metrics"))
