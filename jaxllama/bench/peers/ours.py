"""This model, by its public interface: what `jaxllama generate` runs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from jaxllama.bench.measures import UNTIMED, Measure, prompt_of
from jaxllama.bench.peers.base import Run
from jaxllama.checkpoint import Checkpoint
from jaxllama.generate import generate
from jaxllama.model import Llama


class JaxLlamaPeer:
    """The model, and how it is called.

    Args:
        name: of the variant, of which there is one.
        checkpoint: opened.
        dtype: of weights, arithmetic and cache.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: str) -> None:
        self.model = Llama.from_pretrained(checkpoint, dtype=dtype)

    def prepare(self, measure: Measure) -> Run:
        """Return a call of `generate`: of one token, or watched every few so that it can be timed.

        The watched loop is that of a text shown as it comes: a call of the program for every
        `UNTIMED` tokens.
        """
        rows = prompt_of(measure, self.model.config.vocab_size)
        stamps: list[float] = []

        def watch(_: list[list[int]]) -> Mapping[int, int]:
            stamps.append(time.perf_counter())
            return {}

        def prefill() -> tuple[float, list[list[int]]]:
            started = time.perf_counter()
            found = generate(self.model, rows, max_new_tokens=1, eos_ids=())
            return time.perf_counter() - started, found.rows()

        def decode() -> tuple[float, list[list[int]]]:
            stamps.clear()
            total = UNTIMED + measure.new
            found = generate(
                self.model, rows, max_new_tokens=total, eos_ids=(), watch=watch, every=UNTIMED
            )
            return stamps[-1] - stamps[0], found.rows()

        return prefill if measure.kind == "prefill" else decode


open_peer = JaxLlamaPeer
