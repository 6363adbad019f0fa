"""Where the seconds of a run go: computing with taps, computing without, comparing."""

from __future__ import annotations

import resource
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class _Compiling(threading.local):
    seconds = 0.0


_compiling = _Compiling()


class Timer:
    """Counts the seconds of one run, from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def seconds(self) -> dict[str, float]:
        """Return the seconds counted, by what they went to."""
        with self._lock:
            return {f"{what}_s": seconds for what, seconds in sorted(self._seconds.items())}

    @contextmanager
    def measure(self, what: str | None, *, processor: bool = False) -> Iterator[None]:
        """Count what is done inside, less what this thread compiles; `what` None counts nothing.

        Args:
            what: under which name.
            processor: count this thread's processor time, for work that others overlap.
        """
        now = time.thread_time if processor else time.perf_counter
        began, compiled = now(), _compiling.seconds
        try:
            yield
        finally:
            apart = _compiling.seconds - compiled
            with self._lock:
                if what is not None:
                    self._seconds[what] += now() - began - apart
                    self._seconds["compiling"] += apart


def totals(began: float) -> dict[str, float]:
    """Return what a run has taken as a whole.

    Args:
        began: what `time.perf_counter` said then.
    """
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes here.
    return {"total_s": time.perf_counter() - began, "peak_memory_gb": most / 1e6}


def on_event(event: str, duration_secs: float, **_: str | int) -> None:
    """Count what JAX spent tracing and compiling in this thread."""
    if event.startswith("/jax/core/compile/"):
        _compiling.seconds += duration_secs
