"""Implementations that compute a pass once and hand out the same arrays ever after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from parity.inputs import Inputs
from parity.subjects.base import Arrays, CachedSubject, Run, require_gradients

Key = tuple[str, tuple[int, ...], bool, bool]


class CachedReference:
    """A reference whose passes are kept: the same inputs give the same taps.

    What it is forced to is not part of the key: it must always be the same taps of the same
    reference.

    Args:
        subject: the implementation to ask once.
    """

    def __init__(self, subject: CachedSubject) -> None:
        self._subject = subject
        self.name, self.dtype = subject.name, subject.dtype
        self.absent, self.can_force = subject.absent, subject.can_force
        self.internal_dtype = getattr(subject, "internal_dtype", subject.dtype)
        self._stages: dict[Key, list[Arrays]] = {}

    def start(self, inputs: Inputs) -> CachedRun:
        return CachedRun(self, inputs, None)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> CachedRun:
        return CachedRun(self, inputs, chunks)

    def start_grad(self, inputs: Inputs) -> CachedRun:
        return CachedRun(self, inputs, None, backward=True)


class CachedRun:
    """One pass, replayed as far as it has been recorded."""

    def __init__(
        self,
        cached: CachedReference,
        inputs: Inputs,
        chunks: Sequence[int] | None,
        *,
        backward: bool = False,
    ) -> None:
        self._source, self._inputs, self._chunks = cached, inputs, chunks
        self._backward = backward
        self._place = 0
        self._run: Run | None = None

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """Return the next stage's taps."""
        chunks = tuple(self._chunks or ())
        key = self._inputs.digest(), chunks, force is not None, self._backward
        stages = self._source._stages.setdefault(key, [])
        if self._place == len(stages):
            if self._run is None:
                self._run = self._begin(stages, force)
            stages.append(self._run.step(force))
        self._place += 1
        return stages[self._place - 1]

    def _begin(self, stages: list[Arrays], force: Mapping[str, np.ndarray] | None) -> Run:
        subject = self._source._subject
        if stages:
            raise RuntimeError("a pass that was broken off cannot be taken up in its middle")
        if self._backward:
            return require_gradients(subject).start_grad(self._inputs)
        if self._chunks is None:
            return subject.start(self._inputs)
        return subject.start_decode(self._inputs, self._chunks)
