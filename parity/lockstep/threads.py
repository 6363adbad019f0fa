"""Work that goes on beside other work, where there is enough of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Of arrays smaller than this in all, more time goes to taking turns at the interpreter's lock than
# to the arrays: comparing 18 small ones took five times as long beside other threads as alone.
ENOUGH_ELEMENTS = 1 << 20


class ComparisonThreads(ThreadPoolExecutor):
    """Threads for NumPy, which works outside the interpreter's lock; one a processor."""

    def __init__(self) -> None:
        super().__init__(os.cpu_count())

    def submit_if_large(
        self, elements: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Begin to work on so many elements, or work now if they are few."""
        if elements >= ENOUGH_ELEMENTS:
            return self.submit(function, *args, **kwargs)
        done: Future[T] = Future()
        done.set_result(function(*args, **kwargs))
        return done
