"""What a watched pass shows, brought to canonical layouts and put into stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.subjects.adapters.framework import Values
from parity.subjects.adapters.layouts import Tap, canonical, drop_unfilled, native, sizes_of
from parity.subjects.threaded import Force, StageExchange
from parity.taps import CACHE_TAPS, split_name, stage_of


class StageRecord:
    """One stage's taps, and what is to be put in their places."""

    def __init__(self, force: Force = None) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.force: Mapping[str, np.ndarray] = force or {}


class StageRecorder:
    """Records one call of a model into the stages of a run.

    Args:
        stages: where to.
        values: what the model computes in.
        config: the model's.
        inputs: the scenario.
        columns: first and one past the last of a call through a cache; None without one.
    """

    def __init__(
        self,
        stages: StageExchange,
        values: Values,
        config: LlamaConfig,
        inputs: Inputs,
        columns: tuple[int, int] | None,
    ) -> None:
        start, stop = columns or (0, inputs.tokens.shape[1])
        self._stages, self._values = stages, values
        self._layers, self._cached = config.num_hidden_layers, columns is not None
        self._sizes = sizes_of(config, inputs, start, stop)
        self._visible = inputs.mask[:, start:stop, :stop]
        self._stage = 0

    def __call__(self, tap: Tap, value: Any) -> Any:
        """Record a value under its canonical name; return it or what is forced."""
        if split_name(tap.name)[0] in CACHE_TAPS and not self._cached:
            return value  # what is put into a cache that nothing is read from
        self._reach(tap.name)
        shown: StageRecord = self._stages.tap
        if tap.name in shown.values:
            raise InputError(f"names: {tap.name} was shown twice in one pass")
        layout, array = pattern(tap), self._values.to_numpy(value)
        if self._cached:
            array = drop_unfilled(array, layout, self._sizes["S"])
        shown.values[tap.name] = canonical(array, layout, self._sizes)
        if tap.name not in shown.force:
            return value
        forced = shown.force[tap.name]
        if tap.name.endswith("attn_scores") and forced.shape == shown.values[tap.name].shape:
            # Hidden cells may hold a mask already, which the reference's scores come before.
            forced = np.where(self._visible[:, None], forced, shown.values[tap.name])
        return self._values.like(native(forced, layout, self._sizes), value)

    def _reach(self, name: str) -> None:
        """Go on to the stage that a tap belongs to."""
        stage = stage_of(name, self._layers)
        if stage < self._stage:
            raise InputError(f"names: {name} shows after its stage is over; leave it out")
        while self._stage < stage:
            self._stages.turn()
            self._stage += 1

    def finish(self) -> None:
        """Hand over the stages that are left."""
        self._reach("logits")
        self._stages.hand_over()


def pattern(tap: Tap) -> Tap:
    """Return a tap of no layer in particular."""
    kind, layer = split_name(tap.name)
    name = kind if layer is None else kind.replace(".", ".{i}.", 1)
    return Tap(name, tap.axes, scale=tap.scale)
