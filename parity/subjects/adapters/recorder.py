"""What a watched pass shows, brought to canonical layouts and put into stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import parse, short_name
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.subjects.adapters.framework import Values
from parity.subjects.adapters.layouts import (
    Tap,
    canonical,
    drop_unfilled,
    native,
    pattern,
    sizes_of,
)
from parity.subjects.threaded import Force, StageExchange
from parity.taps import CACHE_TAPS, SETUP_TAPS, split_name, stage_of


class StageRecord:
    """One stage's taps, and what is to be put in their places."""

    def __init__(self, force: Force = None) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.force: Mapping[str, np.ndarray] = force or {}


class ShownDtypes:
    """Tells a dtype that is declared in vain: rounding would be excused that is not there.

    Single arrays may well be wider, weights of attention or logits; not all that are shown, with
    numbers that the declared dtype does not hold, of a model that holds no parameter in it.

    Args:
        declared: `f64`, `f32` or `bf16`.
        held: names of the dtypes of the parameters; None or empty where that is not known.
    """

    def __init__(self, declared: str, held: Collection[str] | None) -> None:
        self._declared, self._held = parse(declared), held or ()
        self._open = self._declared.name not in self._held
        self._others: Counter[str] = Counter()

    def note(self, name: str, array: np.ndarray) -> None:
        """Look at what is shown under a name."""
        declared, shown = self._declared, array.dtype
        if not self._open or name in _TAKEN_OVER or shown.kind in "biu":
            return
        if shown.itemsize <= declared.itemsize and shown != declared:
            # Beside parameters that are not narrower this is a cast, which is for the verdict.
            self._open = bool(self._held)
        elif shown == declared or _holds(declared, array):
            self._open = False
        if self._open:
            self._others[shown.name] += 1

    def check(self) -> None:
        """Refuse the declaration if nothing bears it out."""
        if not (self._open and self._others):
            return
        count, names = self._others.total(), " and ".join(sorted(self._others))
        declared = short_name(self._declared)
        raise InputError(
            f"dtype {declared} is declared, and nothing shows it: floating arrays that are shown"
            f" ({count}) are all {names}; declare that, or cast the model to {declared} (if only"
            " these are of another dtype, name one that is not, such as a layer's output)"
        )


# Numbers of the checkpoint's own, whatever dtype they are computed with.
_TAKEN_OVER = ("embed", "layers.0.input", *SETUP_TAPS)


def _holds(dtype: np.dtype, array: np.ndarray) -> bool:
    """Return whether a narrower dtype holds all numbers of an array."""
    with np.errstate(over="ignore"):
        back = array.astype(dtype).astype(array.dtype)
    return bool(np.array_equal(back, array, equal_nan=True))


class StageRecorder:
    """Records one call of a model into the stages of a run.

    Args:
        stages: where to.
        values: what the model computes in.
        config: the model's.
        inputs: the scenario.
        columns: first and one past the last of a call through a cache; None without one.
        dtypes: what dtypes are seen by; None where nothing is declared.
    """

    def __init__(
        self,
        stages: StageExchange,
        values: Values,
        config: LlamaConfig,
        inputs: Inputs,
        columns: tuple[int, int] | None,
        dtypes: ShownDtypes | None = None,
    ) -> None:
        self._dtypes = dtypes
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
        if self._dtypes is not None:
            self._dtypes.note(tap.name, array)
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
        """Hand over the stages that are left.

        Raises:
            InputError: nothing that was shown is of the dtype that is declared.
        """
        if self._dtypes is not None:
            self._dtypes.check()
        self._reach("logits")
        self._stages.hand_over()
