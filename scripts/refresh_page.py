"""Do what a page has its reader do, and write what is printed into it.

    python scripts/refresh_page.py docs/quality-example.md docs/tutorials/convert.md

What a page may hold, and what `...` stands for in it: tests/support/snippets.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import snippets  # noqa: E402


def refresh(page: str) -> str:
    """Return a page with what its snippets print now.

    Raises:
        SystemExit: one ended with another exit code than the page says.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "docs").symlink_to(ROOT / "docs")
        done = [*snippets.outcomes(page, Path(folder))]
    for step, code, printed in reversed(done):
        if code != step.code:
            raise SystemExit(snippets.problem(step, code, printed))
        if step.shown is not None:
            now = snippets.refreshed(step.shown, printed)
            page = page[: step.start] + now + page[step.start + len(step.shown) :]
    return page


def main(words: Sequence[str] | None = None) -> None:
    """Refresh pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="+")
    for path in parser.parse_args(words).pages:
        path.write_text(refresh(path.read_text()))


if __name__ == "__main__":
    main()
