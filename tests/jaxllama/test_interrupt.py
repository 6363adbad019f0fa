"""Ctrl-C is heard wherever it comes up."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from jaxllama.interrupt import command, on_interrupt


@contextmanager
def _collecting(hook: Callable[..., None]) -> Iterator[None]:
    gc.callbacks.append(hook)
    try:
        gc.collect()
        yield
    finally:
        gc.callbacks.remove(hook)


def _once() -> Callable[..., None]:
    """Return a function whose first call is interrupted."""
    left = [None]

    def interrupted(*_: Any) -> None:
        if left:
            left.pop()
            signal.raise_signal(signal.SIGINT)

    return interrupted


def test_an_interrupt_lost_in_garbage_collection_comes_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt), on_interrupt(), _collecting(_once()):
        time.sleep(20)  # to its end only where the interrupt is lost
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def test_one_lost_in_a_finalizer_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Held:
        pass

    def drop() -> None:
        held.clear()
        time.sleep(20)

    held = [Held()]
    watched = weakref.ref(held[0], _once())
    with pytest.raises(KeyboardInterrupt), on_interrupt():
        drop()
    assert watched() is None
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_lost_exceptions_are_reported_as_ever() -> None:
    reported = []

    def broken(*_: Any) -> None:
        raise ValueError("of another kind")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
        with on_interrupt(), _collecting(broken):
            time.sleep(0.1)
    assert set(reported) == {ValueError}


# What stands for a command's module.
_MODULE = """
import atexit, multiprocessing, os, signal, sys
atexit.register(print, "taken down")
lock = multiprocessing.get_context("spawn").Lock()  # which the system holds
if sys.argv[1] == "import":
    os.kill(os.getpid(), signal.SIGINT)

def main():
    print("said")
    if sys.argv[1] == "closed":
        sys.stdout.flush()
        sys.stdout = None
        raise SystemExit(130)
    raise SystemExit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("what", "code", "out", "err"),
    [
        ("130", 130, "said\n", ""),
        ("2", 2, "said\ntaken down\n", ""),
        ("0", 0, "said\ntaken down\n", ""),
        ("closed", 130, "said\n", ""),
        ("import", 130, "", "interrupted; nothing was written\n"),
    ],
)
def test_an_interrupted_command_ends_at_once(
    tmp_path: Path, what: str, code: int, out: str, err: str
) -> None:
    (tmp_path / "said.py").write_text(_MODULE)
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from jaxllama.interrupt import command; command('said')()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, what],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


@pytest.mark.parametrize("name", ["jaxllama", "parity"])
def test_the_installed_commands_end_so(name: str) -> None:
    (found,) = entry_points(group="console_scripts", name=name)
    assert found.load().__qualname__ == command("x").__qualname__
