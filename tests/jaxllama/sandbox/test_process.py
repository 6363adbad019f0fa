"""Templates are strangers' programs: whatever one does ends within limits, in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxllama.errors import CheckpointError, InputError
from jaxllama.sandbox import process
from jaxllama.sandbox.process import SandboxProcess
from jaxllama.tokenizer.template_chat import AddedTexts, TemplateChat

LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
GROW = "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"
HELLO = "{{ messages[0].content }}"


@pytest.fixture
def tight() -> Iterator[SandboxProcess]:
    made = SandboxProcess(seconds=1, nbytes=200 << 20)
    yield made
    made.end()


def running(made: SandboxProcess) -> Any:
    return made._process


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP, "takes more than 1 seconds"),
        (GROW, "takes more than 200 MB"),
        ("{{ 'x' * 10**9 }}", "takes more than 200 MB"),
        ("{{ '%999999999d' % 1 }}", "takes more than 200 MB"),
        (
            "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
            "gives more than 16000000 characters",
        ),
        ("x" * 1_000_001, "has 1000001 characters, at most 1000000 are accepted"),
    ],
    ids=["loop", "grow", "fold", "format", "output", "length"],
)
def test_what_is_beyond_a_limit_is_said(tight: SandboxProcess, template: str, said: str) -> None:
    assert tight.ask("render", template, {}) == {"beyond": said}
    # The next is answered, by another process.
    assert tight.ask("render", "{{ a }}", {"a": (1, "é\ud800")}) == {"text": "(1, 'é\\ud800')"}


@pytest.mark.parametrize("action", ["parse", "literals", "render"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}",
        "{% if a %}" * 4000,
        "{{ " + "a+" * 9000 + "a }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ x.y }}{{ x.y.z }}\ud800\0",
        "{% extends 'x' %}",
        "{{ raise_exception({}.x.y) }}",
        "{{ ().__class__.__bases__ }}",
        "{% include '/etc/passwd' %}",
    ],
    ids=["brackets", "blocks", "sum", "macro", "undefined", "extends", "refusal", "dunder", "file"],
)
def test_every_failure_is_an_answer(action: str, template: str) -> None:
    said = process.ask(action, template)
    assert len(said) == 1 and next(iter(said)) in ("text", "texts", "failed", "refused")
    assert "root:" not in str(said)


def test_a_process_that_dies_is_said_and_replaced(tight: SandboxProcess) -> None:
    assert tight.ask("render", "1", {}) == {"text": "1"}
    first = running(tight)
    threading.Timer(0.2, first.send_signal, [signal.SIGSEGV]).start()
    found = tight.ask("render", LOOP, {})
    assert found == {"beyond": "ends the process that runs it (code -11)"}
    assert tight.ask("render", "2", {}) == {"text": "2"}
    running(tight).kill()  # between two questions
    running(tight).wait()
    assert tight.ask("render", "3", {}) == {"text": "3"}


def test_the_wall_clock_has_a_limit_too(
    tight: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tight.ask("render", "1", {}) == {"text": "1"}
    running(tight).send_signal(signal.SIGSTOP)
    limit = "jaxllama.files.limits.SANDBOX_WAIT_SECONDS"
    with monkeypatch.context() as short:
        short.setattr(limit, 0.3)
        assert tight.ask("render", "1", {}) == {"beyond": "takes more than 0.3 seconds"}
    # Nor does it hang where the other side does not read; a new process has its time to start.
    assert tight.ask("parse", "1", {}) == {"text": ""}
    running(tight).send_signal(signal.SIGSTOP)
    monkeypatch.setattr(limit, 0.3)
    found = tight.ask("render", "1", {"a": "x" * 10_000_000})
    assert found == {"beyond": "takes more than 0.3 seconds"}


def test_threads_and_speed(tight: SandboxProcess) -> None:
    tight.ask("parse", HELLO, {})
    found: list[str] = []

    def many(number: int) -> None:
        for i in range(50):
            text = f"{number} {i}"
            answer = tight.ask("render", HELLO, {"messages": [{"content": text}]})
            if answer != {"text": text}:
                found.append(str(answer))

    began = time.perf_counter()
    threads = [threading.Thread(target=many, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    assert time.perf_counter() - began < 200 * 0.02


PROGRAM = """
import os, signal, sys, threading, time
from jaxllama.sandbox import process
process.ask("parse", "1")
print(process._the_process._process.pid, flush=True)
kind = sys.argv[1]
if kind == "fork":
    if child := os.fork():
        os.waitpid(child, 0)
        print(process.ask("render", "of the parent"))
    else:
        print(process.ask("render", "of the child"), flush=True)
        process._the_process.end()
        os._exit(0)
elif kind == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif kind == "interrupted":
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        process.ask("render", sys.argv[2])
    except KeyboardInterrupt:
        print(process.ask("render", "again"))
        time.sleep(0.1)
elif kind == "light":
    print(sorted({"jax", "numpy", "tokenizers", "torch"} & set(sys.modules)))
"""


def left(pid: int) -> bool:
    """Whether a process is still there some time after it had to end."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        if Path(f"/proc/{pid}/stat").exists():
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            if state == "Z":  # of a parent that is dead: its new one has not looked yet
                return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("kind", "printed"),
    [
        ("end", []),
        ("fork", ["{'text': 'of the child'}", "{'text': 'of the parent'}"]),
        ("killed", []),
        ("interrupted", ["{'text': 'again'}"]),
        ("light", ["[]"]),
    ],
)
def test_it_ends_with_us(kind: str, printed: list[str]) -> None:
    words = [sys.executable, "-c", PROGRAM, kind, LOOP]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert run.returncode == (-9 if kind == "killed" else 0), run.stderr
    pid, *rest = run.stdout.splitlines()
    assert rest == printed
    assert not left(int(pid))


def chat(template: str) -> TemplateChat:
    return TemplateChat(
        templates={"default": template},
        variables={},
        added=AddedTexts(ids={"<a>": 1}, special=set()),
        encode_plain=lambda text: [len(text)],
        source="here",
    )


def test_a_chat_says_whose_fault_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SandboxProcess(seconds=1, nbytes=200 << 20)
    monkeypatch.setattr(process, "_the_process", made)
    hello = [{"role": "user", "content": "hi"}]
    with pytest.raises(CheckpointError, match="here: the chat template takes more than 1 seconds"):
        chat(LOOP).render(hello)
    with pytest.raises(CheckpointError, match="fails on any conversation: UndefinedError"):
        chat("{{ x.y.z }}").render(hello)
    with pytest.raises(InputError, match="cannot take these messages: UndefinedError"):
        chat("{{ messages[0].content.x.y if messages[0].content == 'hi' }}").render(hello)
    with pytest.raises(InputError, match="refuses these messages: no"):
        chat("{{ raise_exception('no') }}").render(hello)
    (problem,) = chat("x" * 1_000_001).problems
    assert problem.startswith("the chat template has 1000001 characters, at most 1000000")
    with pytest.raises(CheckpointError, match="the chat template takes more than 200 MB"):
        chat("{{ 'x' * 10**9 }}").render(hello)
    inner: list[Any] = []
    inner.append(inner)
    with pytest.raises(InputError, match="nested too deep"):
        chat(HELLO).render([{"role": "user", "content": inner}])
    made.end()


def test_code_that_is_edited_runs_in_here(tight: SandboxProcess) -> None:
    with process.answered_in_here():
        assert process.ask("render", "{{ 1 }}") == {"text": "1"}
    assert not process._in_here
