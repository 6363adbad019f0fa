"""The report as a document: complete, in one piece, bounded, and text stays text."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import result, row, witness_row
from snapshots import CAUSE, SCRIPT, crowded, decoded, leaking, pictured, rotated

from jaxllama.errors import InputError
from parity.comparison.attention_image import LEAKED, LOST
from parity.report import figures, html_file, sprites
from parity.result import Result
from parity.subjects.base import Arrays

# Attributes that make a browser fetch something.
FETCHING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background"}


class Page(HTMLParser):
    """Reads a page: its tags, what it would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in FETCHING and not (value or "").startswith("#")  # a place on the page itself
        ]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def external(text: str) -> list[str]:
    """Return whatever a page could fetch: attributes, stylesheets' URLs and imports."""
    urls = re.findall(r"url\(([^)]{0,60})", text) + re.findall(r"@import[^;]*", text)
    return [url for url in (*Page(text).fetched, *urls) if not url.startswith("data:image/png")]


def test_the_verdict_comes_first_with_cause_and_experiment() -> None:
    text = html_file.page(pictured(rotated, cause=CAUSE))
    said = Page(text).text
    order = ("divergent", "first at layers.0.q_rope", "effective theta 1e+06, configured 500000")
    places = [said.index(words, 300) for words in order]
    assert places == sorted(places)
    for words in (
        "effective, in the subject theta 1e+06",
        "configured, in the checkpoint 500000",
        "before 1.50e+00",
        "after 6.00e-16",
        "so changed, the reference agrees",
        "Read rope_theta from the config.",
        "all 4 heads",
        "parity run tiny",
        "jax 1.2.3",
    ):
        assert words in said, words


def test_the_origin_is_what_the_runs_have_shown() -> None:
    found = pictured(rotated)
    said = Page(html_file.page(found)).text
    assert "the operator itself: on the reference's inputs it is wrong too" in said
    alone = result([one for one in found.rows if one.mode == "free"])
    said = Page(html_file.page(alone)).text
    assert "it or what it was given: nothing was run on the reference's inputs" in said
    assert "it is right" not in said


def test_an_equal_and_an_open_result() -> None:
    equal = Page(html_file.page(pictured())).text
    assert "42 taps agree within measured rounding" in equal and "Where it begins" not in equal
    witnesses = [witness_row(witness="hf", rho=77.0, worst_tap="norm", problems=("norm: shape",))]
    found = pictured(witnesses=witnesses, unmatched=("layers.0.odd",))
    text = Page(html_file.page(found)).text
    assert "hf (f64, causal) is 77 times the noise" in text and "norm: shape" in text
    assert "unmatched taps of the subject: layers.0.odd" in text


def test_nothing_is_fetched() -> None:
    text = html_file.page(pictured(rotated, cause=CAUSE))
    assert external(text) == []
    assert "default-src 'none'" in text and "https://" not in text and "http://" not in text
    for planted in ('<img src="x.png">', "<style>a{background:url(//x/y)}</style>"):
        assert external(text + planted) != []


MACHINE = {
    "processor": "Some CPU",
    "processor_instructions": "AVX-512",
    "processors": 2,
    "xla_instructions": "AVX2",
    "xla_threads": 2,
    "xla_products": "YNNPACK",
    "torch_instructions": "AVX2",
    "torch_threads": 1,
    "torch_libraries": "MKL 2024.2, oneDNN 3.7",
    "settings": "OMP_NUM_THREADS=1",
}


def test_the_environment_is_in_sentences() -> None:
    found = pictured()
    here = {"machine": MACHINE, "python": "3.11.9", "platform": "Linux", "x64": True}
    found = replace(found, environment=found.environment | here)
    said = Page(html_file.page(found)).text
    for words in (
        "The machine is Some CPU: 2 processors, AVX-512 at the widest.",
        "XLA computes with AVX2 on 2 threads, matrix products by YNNPACK with AVX-512; PyTorch "
        "with AVX2 on 1 thread, matrix products by MKL 2024.2, oneDNN 3.7.",
        "JAX ran on 1 device, cpu, with float64 on; it multiplies float32 matrices in float32 as "
        "run, in tf32 by default.",
        "Software: Linux, Python 3.11.9, jax 1.2.3.",
        "Settings of the process: OMP_NUM_THREADS=1.",
    ):
        assert words in said, words


def test_both_environments_of_a_comparison_are_readable() -> None:
    found = pictured()
    other = {"python": "3.12.9", "versions": {"torch": "9.8", "jax": None}, "x64": False}
    text = html_file.page(replace(found, environment=found.environment | {"reference": other}))
    said = Page(text).text
    assert "Environment of the reference Software: Python 3.12.9, torch 9.8." in said
    assert "JAX ran on 1 device, cpu;" in said
    assert "{" not in said[said.index("Environment") :].split("Inputs")[0]


def test_text_stays_text() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    cause = replace(CAUSE, title=hostile, summary=hostile, remedy=hostile)
    found = pictured(rotated, cause=cause, notes=[hostile], command=f"parity run '{hostile}'")
    text = html_file.page(found)
    assert Page(text).tags.count("script") == 2 and "img" not in Page(text).tags
    assert SCRIPT not in text and hostile not in text
    assert hostile in Page(text).text
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert data["texts"]["causal"][0] == ["The", "␣cat", SCRIPT.replace(" ", "␣"), "↵", '"&\\u202e']


def test_a_result_without_pictures_has_a_page() -> None:
    bare = result([row("layers.0.q_rope", failed=True, mode="decode", step=3), row("logits")])
    text = Page(html_file.page(bare)).text
    assert "decode step 3" in text and "this run has none" in text
    broken = result([row("embed", rho=float("nan"), error=float("inf"), noise=0.0)])
    assert "divergent" in Page(html_file.page(broken)).text


def test_violations_are_on_the_maps_and_masks() -> None:
    found = pictured(leaking)
    (snapshot,) = found.snapshots
    assert snapshot.failed_layer == 1
    mask = figures.masks(snapshot)
    assert mask.wrong == [[0, 0], [0, 0], [2, 0]]
    assert mask.columns[2] == "observed: who carries weight in layer 1"
    cells = snapshot.sheets[1].cells
    assert (cells == LEAKED).sum() == (cells == LOST).sum() == 1
    assert figures.sheet(snapshot.sheets[1]).marks is not None
    assert figures.sheet(snapshot.sheets[0]).marks is None
    assert "✗ 2 cells" in Page(html_file.page(found)).text


def test_maps_of_a_run_through_a_cache_are_put_together() -> None:
    def late(taps: Arrays) -> None:
        probs = taps.get("layers.1.attn_probs")
        if probs is not None and probs.shape[2:] == (1, 4):  # query 3, alone in the second call
            taps["layers.1.attn_probs"] = probs.copy()
            taps["layers.1.attn_probs"][0, 1, 0, 0] = 0.0

    found, whole = decoded(late), pictured()
    (snapshot,), (other,) = found.snapshots, whole.snapshots
    first = snapshot.sheets[0]
    assert (first.weights == other.sheets[0].weights).all() and first.start == 0
    assert (first.cells == other.sheets[0].cells).all()
    assert snapshot.failed_layer == 1
    assert np.argwhere(snapshot.sheets[1].cells == LOST).tolist() == [[1, 3, 0]]
    mask = figures.masks(snapshot)
    assert mask.columns[-1] == "observed: who carries weight in layer 1, from query 3 on"
    assert mask.wrong == [[0, 0], [0, 0], [1, 0]]
    text = Page(html_file.page(found)).text
    assert "f64 causal, through the cache, row 0" in text and "head 1 differs by" in text
    assert "this run has none" not in text


@pytest.mark.parametrize(("heads", "layers"), [(4, 2), (24, 9)])
def test_a_page_is_bounded_and_says_what_it_leaves_out(heads: int, layers: int) -> None:
    text = html_file.page(crowded(96, heads, layers))
    assert len(text.encode()) <= html_file.MOST_BYTES
    assert ("for want of room" in text) == (layers == 9)


def test_figures_give_way_where_even_they_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    full = html_file.page(pictured())
    monkeypatch.setattr(html_file, "MOST_BYTES", 1000)
    bare = html_file.page(pictured())
    assert '"figures"' in full and '"figures"' not in bare and "Left out" in bare


def test_what_is_written_is_the_page_or_nothing(tmp_path: Path) -> None:
    html_file.write(pictured(), tmp_path / "out.html")
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == html_file.page(pictured())
    assert os.listdir(tmp_path) == ["out.html"]
    with pytest.raises(InputError, match="cannot be written"):
        html_file.write(pictured(), tmp_path / "missing" / "out.html")


def test_colours_tell_codes_and_violations_apart() -> None:
    palette = sprites.palette()
    assert len(palette) == len({*palette, sprites.VIOLATION}) - 1 == 256
    channels = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in palette[2:254]])
    lightness = channels @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) <= 0.1).all() and lightness[0] - lightness[-1] > 150


def test_growth_is_above_the_band_where_the_limit_is_passed() -> None:
    rows = [row(f"layers.{i}.output", failed=i > 1) for i in range(4)]
    drawn = figures.growth(rows, 6)
    assert drawn is not None
    for point in drawn.points:
        assert (point.error > point.limit) == (not point.passed)
    assert figures.growth(rows[:1], 6) is None


def test_growth_of_gradients_goes_through_layers_alone() -> None:
    names = ["loss", "grad.logits", "grad.norm", "grad.embed", "grad.model.embed_tokens.weight"]
    rows = [row(name) for name in (*names, "grad.layers.1.input", "grad.layers.0.input")]
    drawn = figures.growth(rows, 4)
    assert drawn is not None and [point.stage for point in drawn.points] == [1, 2]


def test_the_worst_of_several_steps_is_shown() -> None:
    rows = [
        row("layers.0.q_proj", mode="decode", step=i, rho=rho) for i, rho in enumerate((1, 9, 3))
    ]
    grid = figures.operator_grid(rows)
    assert grid is not None and grid.figures == [["9.00e+00", "5.00e-16"]]


def test_gradients_have_columns_of_their_own() -> None:
    names = ("loss", "grad.layers.1.q_proj", "grad.model.layers.1.self_attn.q_proj.weight")
    rows = [row(name, mode="grad") for name in names]
    grid = figures.operator_grid(rows)
    assert grid is not None and grid.layers == [1]
    assert grid.names == ["∂ q_proj", "∂W q_proj"]
    assert [found.tap for found in figures.outside_layers(rows)] == ["loss"]
    assert "∂W q_proj" in html_file.page(result(rows))


def test_the_worst_place_is_named_with_its_tokens() -> None:
    (said,) = re.findall(r"worst at (.*?) subject", Page(html_file.page(pictured(leaking))).text)
    assert said == f"row 0, head 1, query 2 “{SCRIPT.replace(' ', '␣')}”, key 0 “The”"


def test_large_maps_are_shown_where_small_ones_are_folded() -> None:
    found = pictured(leaking)
    (snapshot,) = found.snapshots
    assert "the heads most at odds" not in html_file.page(found)
    snapshot.sheets[1] = replace(snapshot.sheets[1], step=6)
    assert "the heads most at odds" in html_file.page(found)


def kept(found: Result) -> dict[str, Any]:
    return found.to_dict()


def test_pictures_stay_out_of_the_json_document() -> None:
    found = pictured(rotated)
    assert kept(found).keys() == kept(result(found.rows)).keys()
    assert len(json.dumps(kept(found))) < 200_000


def test_what_is_open_has_a_card_beside_a_divergence_too() -> None:
    failed, gap = row("embed", failed=True), {"unmatched": ("layers.0.up_proj",)}
    assert "What is open besides" in html_file.page(result([failed], **gap))
    assert "Why it is open" in html_file.page(result([row("embed")], **gap))
    assert 'id="open"' not in html_file.page(result([failed]))
