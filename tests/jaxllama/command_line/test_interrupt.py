"""Ctrl-C is heard wherever it comes up."""

import gc
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jaxllama.command_line.interrupt import on_interrupt


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
