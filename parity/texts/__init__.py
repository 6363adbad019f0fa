"""Text to run models on, all of it in the public domain.

The Gettysburg Address (Lincoln, 1863), and the openings of A Tale of Two Cities (Dickens, 1859),
Pride and Prejudice (Austen, 1813), the Declaration of Independence (1776) and Moby-Dick (Melville,
1851); then lines of numbers, code and other scripts, written for this file.
"""

from __future__ import annotations

from importlib.resources import files


def prose() -> str:
    """Return some 850 words of English, with numbers, code and non-ASCII text at the end."""
    return files(__name__).joinpath("prose.txt").read_text(encoding="utf-8")
