"""The pages in docs/lint are what the rule files make today."""

from pathlib import Path

import pytest

from parity.lint import catalogue
from parity.lint.pages import main, pages

DOCS = Path(__file__).parents[3] / "docs" / "lint"
REMEDY = "python -m parity.lint.pages docs/lint"


@pytest.mark.parametrize("name", pages())
def test_page_is_current(name):
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], f"run: {REMEDY}"


def test_no_page_is_left_over():
    assert {path.name for path in DOCS.iterdir()} == set(pages()), f"run: {REMEDY}"


def test_every_rule_has_all_its_texts():
    for rule_id, file in catalogue().items():
        rule = file.rule
        for text in (rule.name, rule.checks, rule.why, rule.example, rule.remedy):
            assert text.strip(), rule_id
        assert rule.severity in ("error", "warning")
        assert not rule.remedy.endswith(".")  # it is put inside sentences
        assert set(rule.consequences) <= set(catalogue())


def test_the_writer_writes_them(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pages", str(tmp_path / "new")])
    main()
    assert {p.name: p.read_text() for p in (tmp_path / "new").iterdir()} == pages()
