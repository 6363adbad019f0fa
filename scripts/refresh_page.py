"""Run the commands of a page and write what they print into it.

    python scripts/refresh_page.py docs/quality-example.md

A command is the line of a block marked `sh`; what it prints stands in the block after it, which has
no mark.
A line `...` at that block's end stands for whatever follows. Without such a block the commands are
run, and what they print is of no interest.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CUT = "..."
SHOWN = re.compile(r"^```sh\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def shown(page: str) -> list[tuple[str, str | None]]:
    """Return each block of commands and the output below it, None if there is none."""
    return [(found[1], found[2]) for found in SHOWN.finditer(page)]


def run(commands: str, place: Path) -> str:
    """Return what commands print, one after another, in 80 columns.

    Args:
        commands: a line each, of `parity` or `jaxllama`.
        place: where they run; `docs` is there.
    """
    outputs = []
    for line in commands.splitlines():
        program, *words = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", program, *words],
            cwd=place,
            env=os.environ | {"COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"{line}: exit code {done.returncode}\n{done.stderr}")
        outputs.append(done.stdout)
    return "\n".join(line.rstrip() for line in "".join(outputs).rstrip().splitlines()) + "\n"


def cut(output: str, before: str) -> str:
    """Return an output without what the page has left out of it: as many lines as stand there."""
    lines = before.splitlines()
    if lines[-1:] != [CUT]:
        return output
    return "".join(f"{line}\n" for line in [*output.splitlines()[: len(lines) - 1], CUT])


def outputs(page: str, but: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the commands of a page, what it says that they print, and what they print now.

    Args:
        page: its text.
        but: commands that begin so are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "docs").symlink_to(ROOT / "docs")
        for commands, before in shown(page):
            if but and commands.startswith(but):
                continue
            printed = run(commands, place)
            if before is not None:
                yield commands, before, cut(printed, before)


def differences(before: str, now: str, tolerance: float) -> list[str]:
    """Return where two outputs differ by more than figures within a share of each other.

    Args:
        before: lines as they stand on a page.
        now: lines as they were printed.
        tolerance: the share.
    """
    old, new = before.splitlines(), now.splitlines()
    if len(old) != len(new):
        return [f"{len(old)} lines, now {len(new)}"]
    return [
        f"{was!r}, now {is_!r}"
        for was, is_ in zip(old, new, strict=True)
        if not _alike(was, is_, tolerance)
    ]


def _alike(was: str, is_: str, tolerance: float) -> bool:
    if NUMBER.sub("", was).split() != NUMBER.sub("", is_).split():
        return False
    pairs = zip(map(float, NUMBER.findall(was)), map(float, NUMBER.findall(is_)), strict=True)
    return all(abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in pairs)


def main(words: Sequence[str] | None = None) -> None:
    """Refresh one page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    path = parser.parse_args(words).page
    page = path.read_text()
    for commands, before, now in outputs(page):
        block = f"```sh\n{commands}```\n\n```\n"
        page = page.replace(f"{block}{before}```", f"{block}{now}```", 1)
    path.write_text(page)


if __name__ == "__main__":
    main()
