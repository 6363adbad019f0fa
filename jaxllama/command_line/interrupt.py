"""Ctrl-C: that it is heard, what it leaves behind, and how the process ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NoReturn

# Long enough for the callback that lost it to be over, too short to be noticed.
_AGAIN_SECONDS = 0.02
# A shell's own code for a command that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT


@contextmanager
def on_interrupt(left: Callable[[], str] = lambda: "nothing was written") -> Iterator[None]:
    """Say on standard error what Ctrl-C leaves behind; a command then exits with 130.

    Of several around each other the innermost speaks.

    Args:
        left: called when it comes.
    """
    before = sys.unraisablehook
    sys.unraisablehook = hook = partial(_raised_again, before)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            interrupt.args = (f"interrupted; {left()}",)
            print(*interrupt.args, file=sys.stderr)
        raise
    finally:
        if sys.unraisablehook is hook:  # else another's goes on from it
            sys.unraisablehook = before


def _raised_again(before: Callable[[Any], Any], unraisable: Any) -> None:
    """Interrupt anew where the exception was lost.

    It comes up in whatever runs just then. Garbage collection runs callbacks, JAX's among them,
    and finalizers, whose exceptions Python reports and drops.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        # A signal, which also ends a call of the system's that the thread waits in.
        main = threading.main_thread().ident
        again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        before(unraisable)


def end_at_once() -> NoReturn:
    """End the process that Ctrl-C has ended, and not by the usual way.

    JAX, one of whose calls was cut short, crashes as it is taken down one time in four (a
    segmentation fault, jaxlib 0.10.2).
    """
    try:
        # What queues between processes leave in the system would be reported as leaked.
        if util := sys.modules.get("multiprocessing.util"):
            util._run_finalizers(0)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or nobody reads it any more
                stream.flush()
    finally:
        os._exit(INTERRUPTED)
