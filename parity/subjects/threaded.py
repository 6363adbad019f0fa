"""Running somebody else's forward pass as a sequence of stages, without changing its code.

The pass runs in a thread of its own. At the end of each stage it hands over what was recorded and
sleeps until the next is asked for, so that no more than one stage's arrays are alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import numpy as np

from parity.subjects.base import Arrays, in_stage_order, no_stage_left

Force = Mapping[str, np.ndarray] | None


class _Abandon(BaseException):
    """Unwinds a forward pass nobody waits for; not an `Exception`, so that nothing catches it."""


class StageExchange:
    """The running pass's end of the exchange: records, and passes from stage to stage.

    Attributes:
        tap: records into the present stage; has the stage's arrays as `values`.
    """

    def __init__(self, layers: int, recorder: Callable[[Force], Any]) -> None:
        self._recorder = recorder
        self.tap = recorder(None)
        self.requests: SimpleQueue[Force | type[_Abandon]] = SimpleQueue()
        self.results: SimpleQueue[Arrays | BaseException] = SimpleQueue()
        self._layers = layers
        self._stage = 0

    def begin(self) -> None:
        """Wait until a stage is asked for, then record into it."""
        request = self.requests.get()
        if isinstance(request, type):
            raise _Abandon
        self.tap = self._recorder(request)

    def hand_over(self) -> None:
        """Give the present stage's taps to whoever asked for them, keeping none."""
        values, self.tap = self.tap.values, self._recorder(None)
        self.results.put(in_stage_order(values, self._stage, self._layers))
        self._stage = (self._stage + 1) % (self._layers + 2)

    def turn(self) -> None:
        """End one stage and begin the next."""
        self.hand_over()
        self.begin()


class ThreadedRun:
    """A `Run` over a forward pass that runs in a thread of its own.

    A run that is dropped before its end stops its thread.

    Args:
        forward: the pass; calls `begin` before each call of the model, `turn` between stages and
            `hand_over` after the last.
        layers: L.
        calls: how often it calls the model: once, or once for each chunk.
        recorder: makes what records a stage, of the values forced in it; PyTorch's if not given.
    """

    def __init__(
        self,
        forward: Callable[[StageExchange], None],
        layers: int,
        calls: int = 1,
        recorder: Callable[[Force], Any] | None = None,
    ) -> None:
        self._stages = StageExchange(layers, recorder or _torch_recorder())
        self._left = calls * (layers + 2)
        # Neither the thread nor the finalizer may hold the run, or it would never be dropped.
        self._thread = threading.Thread(
            target=_work, args=(forward, self._stages), name="parity-witness", daemon=True
        )
        self._stop = weakref.finalize(self, self._stages.requests.put, _Abandon)

    def step(self, force: Force = None) -> Arrays:
        """Let the pass compute its next stage and return that stage's taps."""
        if self._left == 0:
            raise no_stage_left()
        if not self._thread.is_alive():
            self._thread.start()
        self._stages.requests.put(force)
        result = self._stages.results.get()
        if isinstance(result, BaseException):
            self._left = 0
            raise result
        self._left -= 1
        return result

    def close(self) -> None:
        """Stop the pass; nothing happens if it is over."""
        self._left = 0
        self._stop()
        if self._thread.is_alive():
            self._thread.join()


def _torch_recorder() -> Callable[[Force], Any]:
    from parity.subjects.torch.arrays import Recorder

    return Recorder


def _work(forward: Callable[[StageExchange], None], stages: StageExchange) -> None:
    try:
        forward(stages)
    except _Abandon:
        pass
    except BaseException as error:  # whatever it is, it belongs to the one who waits
        stages.results.put(error)
