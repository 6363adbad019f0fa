"""A page is given what its snippets print now."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import refresh_page

        yield refresh_page
    sys.modules.pop("refresh_page", None)


def test_outputs_are_written_below_what_prints_them(script: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lint = "# Page\n\n```console\n$ parity lint 'causal()' --queries 3\nold\n\nold\n...\n```\n"
    code = "\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    page.write_text(lint + code + "\nThe end.\n")
    script.main([str(page)])
    now = page.read_text()
    assert "--queries 3\nclean: " in now and now.count("\n") == (lint + code).count("\n") + 2
    assert now.endswith("```text\n2\n```\n\nThe end.\n")
    script.main([str(page)])
    assert page.read_text() == now


def test_a_page_whose_snippet_fails_stays(script: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ parity lint 'none()' --queries 3\nold\n```\n")
    with pytest.raises(SystemExit, match="exit code 2, the page says 0"):
        script.main([str(page)])
    assert "\nold\n" in page.read_text()
