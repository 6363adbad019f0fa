"""The process of one variant: does one thing when it is asked, and sleeps in between.

Questions and answers are lines of JSON. Standard output is kept for answers; what libraries print
goes where errors go.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from jaxllama.bench.measures import Measure
from jaxllama.bench.peers.base import Peer, Run
from jaxllama.command_line.failure import type_and_message


def main() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            said = worker.answer(**json.loads(line))
        except BaseException as error:
            said = {"error": type_and_message(error)}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


class Worker:
    """What the process holds: a peer, and what it has prepared."""

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._runs: dict[Measure, Run] = {}

    def answer(self, ask: str, **said: Any) -> dict[str, Any]:
        """Return the answer to one question.

        Args:
            ask: `open` loads, `run` does a measure's work once.
            said: what it takes, see `open` and `run`.
        """
        return self.open(**said) if ask == "open" else self.run(Measure(**said))

    def open(self, module: str, variant: str, checkpoint: str, dtype: str) -> dict[str, Any]:
        """Import a framework and load the model.

        Args:
            module: of `jaxllama.bench.peers`.
            variant: the name that its `open_peer` is given.
            checkpoint: as on the command line.
            dtype: of all arithmetic.
        """
        from jaxllama.checkpoint import open_checkpoint

        opened = open_checkpoint(checkpoint, quiet=True)
        peers = importlib.import_module(f"jaxllama.bench.peers.{module}")
        imported = peak_bytes()
        self._peer = peers.open_peer(variant, opened, dtype)
        return {"imported_bytes": imported, "loaded_bytes": peak_bytes()}

    def run(self, measure: Measure) -> dict[str, Any]:
        """Do a measure's work once; the first time its program is compiled."""
        assert self._peer is not None
        started = time.perf_counter()
        if measure not in self._runs:
            self._runs[measure] = self._peer.prepare(measure)
        seconds, tokens = self._runs[measure]()
        return {
            "seconds": seconds,
            "whole_seconds": time.perf_counter() - started,
            "tokens": tokens,
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """Return the most memory that this process has had at once."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        # The system's own figure below begins with what the parent had.
        high = next(line for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(high.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
