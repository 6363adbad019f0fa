"""Ctrl-C between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back while arrays are given away to a step; a second one comes through.

    Yields:
        Says whether it has come, to any of several processes: they have to stop after one step.
    """
    came = threading.Event()

    def note(number: int, frame: Any) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    def asked() -> bool:
        if jax.process_count() == 1:
            return came.is_set()
        return bool(np.any(multihost_utils.process_allgather(np.asarray(came.is_set()))))

    if threading.current_thread() is not threading.main_thread():
        yield asked  # to which no signal comes
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
