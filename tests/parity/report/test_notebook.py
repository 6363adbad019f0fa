"""What a notebook shows: a notebook is run, and its pieces are small, closed and harmless."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from pages import opened_browser
from records import result, row, witness_row
from snapshots import CAUSE, SCRIPT, leaking, pictured

from jaxllama.checkpoint.samples import tiny
from jaxllama.masks import Tokens, causal, padding, window
from jaxllama.presets import PRESETS
from parity.report.notebook import attention_html, result_html

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def execute(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run a notebook in a kernel of its own; return its code cells."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_closed(html: str) -> bool:
    """Return whether a piece of HTML fetches and runs nothing."""
    sources = re.findall(r"(?:src|href)='([^']*)'", html)
    harmless = all(source.startswith("data:image/png;base64,") for source in sources)
    return harmless and not re.search(r"<script|https?://|\bon\w+=|url\(", html)


# pyzmq's and tornado's own, of the loop that talks to the kernel.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_its_values(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = execute(path, monkeypatch)
    assert len(cells) >= 5
    for cell in cells:
        (shown,) = [out for out in cell.outputs if out.output_type == "execute_result"]
        html = shown.data["text/html"]
        assert is_closed(html) and len(html) < 100_000, cell.source


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_notebook_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "broken.ipynb", monkeypatch)


def test_a_result_shows_place_cause_and_pictures() -> None:
    html = result_html(pictured(leaking, cause=CAUSE))
    assert is_closed(html) and len(html) < 100_000
    assert "divergent</b>" in html and "layers.1.attn_probs" in html and "rope theta" in html
    assert html.count("violations marked") >= 2
    plain = result_html(pictured())
    assert "equal</b>" in plain and "violations marked" not in plain
    assert is_closed(result_html(result([row("embed")])))


def test_what_strangers_wrote_is_text() -> None:
    html = result_html(pictured(leaking, command=f"parity run {SCRIPT}"))
    assert is_closed(html) and "&lt;script&gt;" in html
    assert not is_closed(html.replace("&lt;", "<"))
    assert not is_closed("<img src='https://example.org/a.png'>")


def test_attention_maps_say_what_they_are() -> None:
    found = pictured(leaking)
    images = found.snapshots[0].sheets[1]
    assert str(images).startswith("attention maps of layer 1, row 0: 5 x 5 cells of 1 tokens")
    assert "of head 1" in str(images)
    html = attention_html(images)
    assert is_closed(html) and html.count("<figure") == min(4, len(images.heads))


def test_a_mask_is_drawn_cell_by_cell() -> None:
    tokens = Tokens.contiguous(np.array([5, 0]), 5)
    html = (causal() & padding()).bind(tokens, tokens)._repr_html_()
    assert is_closed(html) and html.count("<svg") == 2
    # A causal row of five: runs of 1, 2, 3, 4, 5 cells of 14 pixels.
    first = re.findall(r"fill='#1f639f' d='([^']*)'", html)[0]
    assert re.findall(r"h(\d+)v", first) == [str(14 * n) for n in range(1, 6)]
    assert "#d55e00" in html  # in the second row there is nothing to see
    long = Tokens.contiguous(np.array([3000]), 3000)
    assert len((causal() & window(100)).bind(long, long)._repr_html_()) < 20_000


def test_pictures_follow_the_theme_of_the_notebook() -> None:
    tokens = Tokens.contiguous(np.array([5]), 5)
    pieces = [result_html(pictured(leaking)), causal().bind(tokens, tokens)._repr_html_()]
    drawn = "[...document.querySelectorAll('.jaxllama-picture')]"
    colours = f"[...new Set({drawn}.map((one) => getComputedStyle(one).filter))]"
    with opened_browser() as browser:
        page = browser.new_page()
        for theme, dark in (
            ("data-jp-theme-light='false'", True),
            ("data-jp-theme-light='true'", False),
            ("class='vscode-dark'", True),
            ("data-theme='dark'", True),
            ("", False),
        ):
            page.set_content(f"<body {theme}>{''.join(pieces)}</body>")
            assert page.evaluate(f"{drawn}.length") > 10
            (found,) = page.evaluate(colours)
            assert (found != "none") == dark, theme


def test_what_is_printed_of_a_result_is_under_12_lines() -> None:
    open_ = {
        "unmatched": tuple(f"layers.{i}.odd" for i in range(40)),
        "witnesses": [witness_row(witness=f"w{i}", rho=77.0) for i in range(9)],
        "notes": ["a note"] * 30,
        "not_run": ("decode", "grad"),
    }
    found = pictured(leaking, cause=CAUSE, **open_)
    for shown in (str(found), str(found.snapshots[0].sheets[1])):
        assert 1 < len(shown.splitlines()) < 12
    assert max(map(len, str(found).splitlines())) < 500


@pytest.mark.parametrize("config", [tiny().config, *PRESETS.values()])
def test_a_configuration_is_a_few_lines(config: Any) -> None:
    config = getattr(config, "config", config)
    lines = str(config).splitlines()
    assert len(lines) < 12 and max(map(len, lines)) < 200
    assert f"{config.num_hidden_layers} of width {config.hidden_size}" in lines[0]
    assert is_closed(config._repr_html_())
    # Every number is there.
    for name, value in vars(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            assert shown in str(config), name
