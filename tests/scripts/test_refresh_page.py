"""Pages made by their commands still say what these print, and what would differ is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
# Figures of another machine: rounding may turn a word that is written, of some 180.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import refresh_page

        yield refresh_page
    sys.modules.pop("refresh_page", None)


# Of the second page, minutes of SmolLM2 are left out: what they show is tested on `tiny`.
@pytest.mark.parametrize(
    ("name", "but"), [("quality-example.md", ""), ("kv-heads.md", "parity quality")]
)
def test_a_page_says_what_its_commands_print(name: str, but: str, script: ModuleType) -> None:
    page = (ROOT / "docs" / name).read_text()
    assert len(script.shown(page)) == page.count("```sh")
    seen = 0
    for commands, before, now in script.outputs(page, but):
        assert script.differences(before, now, TOLERANCE) == [], commands
        seen += 1
    assert seen >= 3


def test_another_word_or_figure_is_told(script: ModuleType) -> None:
    was = "worse: tiny, perplexity 1.82 -> 100.5\n BLEU  68.9  -65.8\n"
    assert script.differences(was, was.replace("  68", " 68"), 0.01) == []
    assert script.differences(was, was.replace("100.5", "100.9"), 0.01) == []
    for old, new in (("100.5", "110"), ("worse", "better"), ("-65.8", "65.8"), ("\n", "\n\n")):
        assert script.differences(was, was.replace(old, new, 1), 0.01) != []


def test_outputs_are_written_below_their_commands(script: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lint = "```sh\nparity lint 'causal()' --queries 3\n```\n\n```\n{}```\n"
    page.write_text("# Page\n\n" + lint.format("old\n\nold\n...\n"))
    script.main([str(page)])
    (found,) = script.shown(page.read_text())
    assert found[1].startswith("clean: ") and found[1].count("\n") == 4
    page.write_text(lint.format("").replace("lint 'causal()'", "lint 'none()'"))
    with pytest.raises(SystemExit, match="exit code 2"):
        script.main([str(page)])
