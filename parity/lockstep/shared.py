"""Passes of the reference that several runs share: what they ask alike is computed once.

A test suite judges one checkpoint many times, and of its runs only the subjects differ.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from parity.inputs import Inputs
from parity.lockstep.setup import Variants, own_variants
from parity.subjects.base import Arrays, CheckpointLike, Run
from parity.subjects.torch_reference.model import Variant
from parity.subjects.torch_reference.subject import TorchReference

# Of tensors that are kept. Twice what all references of SmolLM2 leave in the usual scenarios at
# 32 tokens.
MOST_BYTES = 1 << 31
Key = tuple[object, ...]


class SharedPasses:
    """What references have computed in this process, as long as there is room for it.

    Weights are not kept: a pass that is known needs none.

    Args:
        most_bytes: of tensors; the passes not asked for longest make room.

    Attributes:
        computed: passes that a reference was run for.
        replayed: passes that were known.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._held = most_bytes, 0
        self._passes: OrderedDict[Key, list[Arrays]] = OrderedDict()
        self.computed = self.replayed = 0

    def variants(self, checkpoint: CheckpointLike) -> Variants:
        """Return what makes a checkpoint's references, which look here before they compute.

        Passes are told apart by what the checkpoint holds, to the bit, wherever it lies.
        """
        return own_variants(checkpoint, partial(SharedReference, self, _digest(checkpoint)))

    def find(self, key: Key) -> list[Arrays] | None:
        """Return the stages of a pass, None where it is not known."""
        if key not in self._passes:
            self.computed += 1
            return None
        self.replayed += 1
        self._passes.move_to_end(key)
        return self._passes[key]

    def fits(self, size: int) -> bool:
        """Return whether a pass of so many bytes is kept at all."""
        return size <= self._most

    def keep(self, key: Key, stages: list[Arrays]) -> None:
        """Keep a whole pass."""
        if key in self._passes:
            return
        self._passes[key] = stages
        self._held += _bytes(stages)
        while self._held > self._most:
            self._held -= _bytes(self._passes.popitem(last=False)[1])


class SharedReference(TorchReference):
    """The reference, which knows its passes of earlier runs.

    Args:
        passes: where they are.
        holds: digest of the checkpoint.
        checkpoint: as of `TorchReference`, and the rest.
    """

    def __init__(
        self,
        passes: SharedPasses,
        holds: str,
        checkpoint: CheckpointLike,
        *,
        dtype: str,
        variant: Variant,
    ) -> None:
        super().__init__(checkpoint, dtype=dtype, variant=variant)
        self._passes, self._holds = passes, holds

    def start(self, inputs: Inputs) -> Run:
        return self._begin(
            "forward", inputs, (), lambda: super(SharedReference, self).start(inputs)
        )

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        return self._begin(
            "decode",
            inputs,
            tuple(chunks),
            lambda: super(SharedReference, self).start_decode(inputs, chunks),
        )

    def start_grad(self, inputs: Inputs) -> Run:
        return self._begin(
            "grad", inputs, (), lambda: super(SharedReference, self).start_grad(inputs)
        )

    def _begin(
        self, how: str, inputs: Inputs, chunks: tuple[int, ...], start: Callable[[], Run]
    ) -> Run:
        key = self._holds, self.dtype, self.variant, how, inputs.digest(), chunks
        stages = (self.config.num_hidden_layers + 2) * max(len(chunks), 1)
        return SharedRun(self._passes, key, stages, start)


class SharedRun:
    """One pass, replayed where it is known, else computed and kept once it is whole.

    Whether it is known shows with the first stage: what it is forced to is part of what it is.

    Args:
        passes: where it may be.
        key: which pass, but for what is forced.
        stages: how many it has.
        start: begins to compute it.
    """

    def __init__(
        self, passes: SharedPasses, key: Key, stages: int, start: Callable[[], Run]
    ) -> None:
        self._passes, self._key, self._count, self._start = passes, key, stages, start
        self._known: list[Arrays] | None = None
        self._run: Run | None = None
        self._place = self._size = 0
        self._stages: list[Arrays] = []

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """Return the next stage's taps."""
        if self._place == 0:
            # The values are the float64 reference's on the same inputs: their names say all.
            forced = None if force is None else tuple(sorted(force))
            self._key = (*self._key, forced)
            self._known = self._passes.find(self._key)
        self._place += 1
        if self._known is not None:
            return dict(self._known[self._place - 1])
        if self._run is None:
            self._run = self._start()
        taps = self._run.step(force)
        self._size += sum(value.nbytes for value in taps.values())
        if self._passes.fits(self._size):
            self._stages.append(dict(taps))
            if len(self._stages) == self._count:
                self._passes.keep(self._key, self._stages)
        else:
            self._stages = []
        return taps


def _bytes(stages: Sequence[Arrays]) -> int:
    return sum(value.nbytes for taps in stages for value in taps.values())


def _digest(checkpoint: CheckpointLike) -> str:
    """Return a digest of the configuration and of every weight, one in memory at a time."""
    sha = hashlib.sha256(repr(checkpoint.config).encode())
    for name in sorted(checkpoint.tensors):
        values = np.ascontiguousarray(checkpoint.read(name))
        sha.update(repr((name, values.dtype.name, values.shape)).encode())
        sha.update(values.view(np.uint8).data if values.size else b"")
    return sha.hexdigest()
