"""What leaves a command holds nothing that a terminal would obey, whoever wrote the text."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest
from rich.table import Table

from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.printable import spell_out
from jaxllama.command_line.streams import EscapedText, as_is

ROOT = Path(__file__).parents[3]
# Colours, a title, a cleared screen, a line begun anew, text turned round, hidden and halved.
HOSTILE = "a\x1b[31m\x1b]0;t\x07\x1b[2J\rb\x9b1A\u202ec\u2066\u200b\ud800\U000e0041"
SHOWN = r"a\x1b[31m\x1b]0;t\x07\x1b[2J\rb\x9b1A\u202ec\u2066\u200b\ud800\U000e0041"


def written(terminal: bool = False) -> tuple[EscapedText, io.BytesIO]:
    below = io.BytesIO()
    below.isatty = lambda: terminal  # type: ignore[method-assign]
    return EscapedText(below, encoding="utf-8", errors="replace", write_through=True), below


def test_what_would_be_obeyed_is_spelled_out_once() -> None:
    assert spell_out(HOSTILE) == SHOWN == spell_out(SHOWN)


@pytest.mark.parametrize(
    "text", ["a\n\tb", "漢字 é", "नमस्ते क्\u200dष", "👩\u200d👩\u200d👧", "שלום مرحبا", "\xa0\xad"]
)
def test_text_of_any_script_stays(text: str) -> None:
    assert spell_out(text) == text


def test_a_stream_escapes_what_is_printed_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, below = written()
    monkeypatch.setattr(sys, "stdout", stream)
    print(HOSTILE, "é")
    as_is(sys.stdout).write("\x1b[0m")
    assert below.getvalue().decode() == f"{SHOWN} é\n\x1b[0m"
    plain = io.StringIO()
    assert as_is(plain) is plain


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_obeys_its_own_colours_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream, below = written(terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    table = Table("name")
    table.add_row(HOSTILE.replace("[", "("), style="bold red")
    console = SafeConsole(width=200)
    console.print(table)
    console.print(HOSTILE.replace("[", "("), style="red", markup=False)
    text = below.getvalue().decode()
    assert ("\x1b[1;31m" in text) == terminal
    for sequence in ("\x1b(", "\x1b]", "\x07", "\u202e", "\x9b"):
        assert sequence not in text
    assert r"\x1b(31m" in text and r"\u202ec\u2066\u200b" in text


def test_nothing_else_writes_to_a_terminal() -> None:
    """Consoles of rich, and streams' own descriptors, would go past the escapes."""
    strays = []
    for package in ("jaxllama", "parity"):
        for path in (ROOT / package).rglob("*.py"):
            if path.parent.name == "command_line" or path.name.endswith("_file.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called, text = ast.unparse(node.func), ast.unparse(node)
                    past = text.startswith(("os.write(1,", "os.write(2,"))
                    if past or called in ("Console", "sys.stdout.buffer.write", "rich.print"):
                        strays.append(f"{path}:{node.lineno}: {called}")
    assert strays == []
