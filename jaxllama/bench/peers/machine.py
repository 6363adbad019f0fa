"""What this machine does at best: the floor beneath the seconds of any model.

Decoding has to read every weight for each step: the floor is their bytes over the rate at which
an array is read that no cache holds. Prefill has to make its products: the floor is their
operations over the rate of the model's own products, weights of several layers in turn. Each rate
is the best of several means (reading by XLA and by NumPy in threads, products by XLA and, where it
is installed, by PyTorch) and of a few repetitions: a floor is what cannot be beaten.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.bench.floors import floor_work, products
from jaxllama.bench.measures import Measure
from jaxllama.bench.peers.base import Run
from jaxllama.checkpoint import Checkpoint
from jaxllama.dtypes import parse

# Of the array that is read: several times the largest caches.
READ_BYTES = 1 << 28
_COLUMNS = 1024
# Layers whose products are made in turn, so that weights come from memory as a model's do.
_LAYERS = 4
_REPETITIONS = 3
_TORCH_NAMES = {"f32": "float32", "bf16": "bfloat16"}
Work = Callable[[], object]


class MachinePeer:
    """The machine in a model's place.

    Args:
        name: of the variant, of which there is one.
        checkpoint: gives the sizes of products.
        dtype: of arrays.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: str) -> None:
        self.config, self.dtype = checkpoint.config, dtype
        self._reads: list[Work] | None = None

    def prepare(self, measure: Measure) -> Run:
        """Return a measurement of the rate, whose seconds are those that the work takes at it."""
        work = floor_work(self.config, measure)
        if measure.kind == "prefill":
            tried = list(multiplications(products(self.config), measure.prompt, self.dtype))
            flops = sum(2 * measure.prompt * i * o for i, o in products(self.config)) * _LAYERS
        else:
            if self._reads is None:
                self._reads = list(readings(self.dtype))
            tried, flops = self._reads, READ_BYTES
        for one in tried:
            one()  # compiles

        def run() -> tuple[float, list[list[int]]]:
            seconds = min(_seconds(one) for _ in range(_REPETITIONS) for one in tried)
            return work * seconds / flops, []

        return run


open_peer = MachinePeer


def readings(dtype: str) -> Iterator[Work]:
    """Yield ways to read `READ_BYTES` bytes on all threads.

    Args:
        dtype: of the array.
    """
    values = np.ones((READ_BYTES // _COLUMNS // parse(dtype).itemsize, _COLUMNS), parse(dtype))
    matrix, vector = jnp.asarray(values), jnp.ones((_COLUMNS,), parse(dtype))
    product = jax.jit(lambda w, x: jnp.einsum("oi,i->o", w, x))
    total = jax.jit(lambda w: w.reshape(_COLUMNS, -1).sum(axis=1))
    yield lambda: product(matrix, vector).block_until_ready()
    yield lambda: total(matrix).block_until_ready()
    words = values.view(np.int32).reshape(-1)
    parts = np.array_split(words, int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield lambda: _in_threads([part.max for part in parts])


def multiplications(sizes: Sequence[tuple[int, int]], tokens: int, dtype: str) -> Iterator[Work]:
    """Yield ways to make the products of `_LAYERS` layers.

    Args:
        sizes: (in, out) of a layer's products.
        tokens: T, rows of each input.
        dtype: of all arrays.
    """
    inputs = [jnp.ones((tokens, i), parse(dtype)) for i, _ in sizes]
    weights = [jnp.ones((o, i), parse(dtype)) for _ in range(_LAYERS) for i, o in sizes]

    @jax.jit
    def multiply(inputs: list[jax.Array], weights: list[jax.Array]) -> list[jax.Array]:
        return [
            jnp.einsum("ti,oi->to", inputs[n % len(inputs)], weight)
            for n, weight in enumerate(weights)
        ]

    yield lambda: jax.block_until_ready(multiply(inputs, weights))
    if importlib.util.find_spec("torch") is not None:
        import torch

        kind = getattr(torch, _TORCH_NAMES[dtype])
        theirs = [torch.ones((tokens, i), dtype=kind) for i, _ in sizes]
        matrices = [torch.ones((o, i), dtype=kind) for _ in range(_LAYERS) for i, o in sizes]
        yield lambda: [
            torch.nn.functional.linear(theirs[n % len(theirs)], matrix)
            for n, matrix in enumerate(matrices)
        ]


def _in_threads(calls: Sequence[Work]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return max(time.perf_counter() - started, math.ulp(1.0))
