"""Pages whose snippets are run: what they show is what is printed, and the next can build on it.

What a page may hold:

- a block `console`: lines that begin with `$ ` are commands, what stands below one is what it
  prints; `# exit code 1` at a command's end says that it does not end with 0; a last backslash
  continues it;
- a block `python`: run, all of a page in one namespace; a block `text` right below is what it
  prints;
- a block `python`, `toml` or `yaml` whose first line is a comment with a file's name: saved there;
- anything else, or `<!-- not run -->` on the line above a block: to be read alone.

In what is shown `...` stands for the rest of a line or, on a line of its own, for any lines.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).parents[2]
CUT = "..."
MARK = "<!-- not run -->"
_FENCED = re.compile(
    rf"^(?P<mark>{MARK}\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|toml|yml|yaml))\n")
_CODE = re.compile(r"\s+# exit code (\d+)$")
_NUMBER = r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_PARTS = re.compile(rf"(?P<cut>\.\.\.)|(?P<number>{_NUMBER})|(?P<space> +)|(?P<rule>─+)")
_DEFAULTS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
# Set by machines that test, not by readers: pytest and terminals print otherwise by it.
_NOT_A_READERS = ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "FORCE_COLOR", "NO_COLOR", "PY_COLORS")
# A shell's own, which no function call can stand for.
_SHELL = {"|", ">", "<", "&", "&&", ";"}


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    Attributes:
        language: as the fence says, "" where it says none.
        text: between the fences.
        line: of the opening fence, from 1.
        start: where `text` begins on the page, in characters.
        marked: that it is not to be run.
        shown: the block `text` right below, and where it begins; None if there is none.
    """

    language: str
    text: str
    line: int
    start: int
    marked: bool = False
    shown: tuple[str, int] | None = None

    @property
    def file(self) -> str | None:
        """The name of the file that it is saved as, None if it is none."""
        found = _FILE.match(self.text)
        named = self.language in ("python", "toml", "yaml") and not self.marked
        return found[1] if found and named else None

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "console") and not self.marked and not self.file


@dataclass(frozen=True)
class Step:
    """One thing to do, and what a page says of it.

    Attributes:
        kind: `python`, `file` or `command`.
        text: code, a file's text, or a command line.
        line: on the page, from 1.
        shown: what is printed, as far as the page says; None if it does not.
        start: where `shown` begins on the page, in characters.
        code: the exit code.
        file: the name of a file.
    """

    kind: str
    text: str
    line: int
    shown: str | None = None
    start: int = 0
    code: int = 0
    file: str = ""


def snippets(page: str) -> list[Snippet]:
    """Return a page's fenced blocks; those that are another's output go with it."""
    found: list[Snippet] = []
    end = -1
    for match in _FENCED.finditer(page):
        language, text, start = match["language"], match["text"], match.start("text")
        below = found[-1] if found and not page[end : match.start()].strip() else None
        if below and below.is_run and below.language == "python" and language == "text":
            found[-1] = Snippet(
                below.language, below.text, below.line, below.start, False, (text, start)
            )
            end = -1
            continue
        line = page.count("\n", 0, start)
        found.append(Snippet(language, text, line, start, bool(match["mark"])))
        end = match.end()
    return found


def steps(page: str) -> list[Step]:
    """Return what a page has its reader do, in order."""
    found: list[Step] = []
    for snippet in snippets(page):
        if snippet.file:
            found.append(Step("file", snippet.text, snippet.line, file=snippet.file))
        elif snippet.is_run and snippet.language == "python":
            shown, start = snippet.shown or (None, 0)
            found.append(Step("python", snippet.text, snippet.line, shown, start))
        elif snippet.is_run:
            found += _commands(snippet)
    return found


def _commands(block: Snippet) -> Iterator[Step]:
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", block.text, flags=re.MULTILINE)
    at = len(parts[0])
    for text, shown in zip(parts[1::2], parts[2::2], strict=True):
        line = block.line + block.text.count("\n", 0, at) + 1
        at += len("$ ") + len(text) + 1
        told = _CODE.search(text)
        command = re.sub(r"\\\n\s*", "", text)
        yield Step(
            "command", command, line, shown, block.start + at, code=int(told[1]) if told else 0
        )
        at += len(shown)


@dataclass
class Session:
    """A reader at work in a folder: see `reading`."""

    place: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def do(self, step: Step) -> tuple[int, str]:
        """Do a step; return its exit code and all it printed. An exception is 1 and a traceback."""
        self._forget_modules()
        if step.kind == "file":
            path = self.place / step.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            return 0, ""
        if step.kind == "python":
            code = compile(step.text, f"line {step.line}", "exec")
            return _called(lambda: exec(code, self.names))
        program, *words = shlex.split(step.text, comments=True)
        if program == "python" and words[0].endswith(".py"):
            return _called(lambda: runpy.run_path(words[0], run_name="__main__"), words)
        if program not in ("jaxllama", "parity") or _SHELL & set(words):
            return _of_a_shell(step.text)
        main = importlib.import_module(f"{program}.cli").main
        return _called(main, [program, *words])

    def _forget_modules(self) -> None:
        """Forget what was imported from the folder: a new process would read it again."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).is_relative_to(self.place):
                del sys.modules[name]
        importlib.invalidate_caches()


@contextmanager
def reading(place: Path) -> Iterator[Session]:
    """Be a reader in an empty folder, with a terminal of 80 columns, offline.

    JAX has its own defaults in there: the flags of our tests are stricter than a reader's.
    """
    session = Session(place.resolve())
    with pytest.MonkeyPatch.context() as patch, _defaults_of_jax():
        patch.chdir(session.place)
        patch.syspath_prepend(str(session.place))
        patch.setattr(sys, "argv", [""])
        patch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second
        for name, value in {
            "COLUMNS": "80",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }.items():
            patch.setenv(name, value)
        for name in _NOT_A_READERS:
            patch.delenv(name, raising=False)
        yield session
        session._forget_modules()


@contextmanager
def _defaults_of_jax() -> Iterator[None]:
    """Give JAX its own defaults, in threads that are started in here, too."""
    ours = {name: getattr(jax.config, name) for name in _DEFAULTS}
    for name, value in _DEFAULTS.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in ours.items():
            jax.config.update(name, value)


def _called(function: Callable[[], object], argv: list[str] | None = None) -> tuple[int, str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    code = 0
    with redirect_stdout(out), redirect_stderr(out), pytest.MonkeyPatch.context() as patch:
        if argv:
            patch.setattr(sys, "argv", argv)
        try:
            function()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code)
        except Exception:
            code = 1
            traceback.print_exc(limit=-3)
    out.flush()
    return code, out.buffer.getvalue().decode()  # type: ignore[attr-defined]


def _of_a_shell(line: str) -> tuple[int, str]:
    done = subprocess.run(
        line, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def outcomes(page: str, place: Path, but: str = "") -> Iterator[tuple[Step, int, str]]:
    """Do all steps of a page in a folder; yield each with its exit code and what it printed.

    Args:
        page: its text.
        place: the folder.
        but: commands that begin so are left out.
    """
    with reading(place) as session:
        for step in steps(page):
            if not (but and step.text.startswith(but)):
                yield step, *session.do(step)


def problem(step: Step, code: int, printed: str, tolerance: float = 0.0) -> str | None:
    """Return how a step went otherwise than its page says, None if it did not."""
    said = f"line {step.line}, {step.text.splitlines()[0]}"
    if code != step.code:
        last = "\n".join(printed.splitlines()[-12:])
        return f"{said}: exit code {code}, the page says {step.code}\n{last}"
    if step.shown is None:
        return None
    differs = difference(step.shown, printed, tolerance)
    return f"{said}: {differs}\n--- printed:\n{printed}" if differs else None


def difference(shown: str, printed: str, tolerance: float = 0.0) -> str | None:
    """Return the first difference between what is shown and what was printed, None if none.

    Args:
        shown: of a page, with its cuts.
        printed: now.
        tolerance: by which share figures may differ.
    """
    got = _lines(printed)
    first, *rest = _between_cuts(_lines(shown))
    for number, line in enumerate(first):
        found = got[number] if number < len(got) else None
        if found is None or not alike(line, found, tolerance):
            return f"line {number + 1} of the output is {found!r}, shown as {line!r}"
    at = len(first)
    if not rest:
        return None if len(got) == at else f"printed and not shown: {got[at]!r}"
    for number, run in enumerate(rest, 1):
        last = len(got) - len(run)
        places = [last] if number == len(rest) and run else range(at, last + 1)
        for place in places:
            below = got[place : place + len(run)] if place >= at else []
            if len(below) == len(run) and all(
                alike(a, b, tolerance) for a, b in zip(run, below, strict=True)
            ):
                at = place + len(run)
                break
        else:
            return f"shown and not printed there: {run[0]!r}"
    return None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def _between_cuts(lines: list[str]) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == CUT:
            runs.append([])
        else:
            runs[-1].append(line)
    return runs


def alike(shown: str, printed: str, tolerance: float = 0.0) -> bool:
    """Return whether a line is as shown; the widths of columns go with their figures."""
    pattern, figures, end = "", [], 0
    for part in _PARTS.finditer(shown):
        kind = part.lastgroup or ""
        pattern += re.escape(shown[end : part.start()])
        end = part.end()
        if kind == "number" and shown.startswith(CUT, end):
            pattern += re.escape(part[0])  # a part of one: 0.05...
            continue
        if kind == "number":
            figures.append(part[0])
        pattern += {"cut": ".*", "number": f"({_NUMBER})", "space": " +", "rule": "─+"}[kind]
    found = re.fullmatch(pattern + re.escape(shown[end:]), printed)
    if found is None:
        return False
    pairs = zip(figures, found.groups(), strict=True)
    return all(a == b or _close(float(a), float(b), tolerance) for a, b in pairs)


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(abs(a), abs(b))


def refreshed(shown: str, printed: str) -> str:
    """Return an output for a page: as it was printed now, with the cuts that the page has.

    With lines cut it stays, if it still is so. Else a cut on the last line keeps as many lines as
    stood above it, and a line with a cut in it stays if it still is so.
    """
    was, now = _lines(shown), _lines(printed)
    if CUT in was and difference(shown, printed) is None:
        return shown
    if was[-1:] == [CUT]:
        now = [*now[: len(was) - 1], CUT]
    before = was if len(was) == len(now) else now
    lines = [a if CUT in a and alike(a, b) else b for a, b in zip(before, now, strict=True)]
    return "".join(f"{line}\n" for line in lines)
