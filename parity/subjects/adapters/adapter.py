"""Somebody else's model as a subject: forwards, through its own cache, backwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from parity import user_code
from parity.inputs import Inputs
from parity.subjects.adapters.framework import Values
from parity.subjects.adapters.gradients import Backward
from parity.subjects.adapters.intercept import Seen
from parity.subjects.adapters.names import Names, sites, unshown
from parity.subjects.adapters.recorder import ShownDtypes, StageRecord, StageRecorder
from parity.subjects.base import GeneratedRun, chunk_ranges
from parity.subjects.takes import ANYTHING, Takes
from parity.subjects.threaded import StageExchange, ThreadedRun
from parity.taps import AXES

Call = Callable[[Any, Inputs], Any]
# Of a module, a scenario, the first column of a call, one past its last, and the cache that the
# call before returned, None at first: the result, and the cache.
Decode = Callable[[Any, Inputs, int, int, Any], tuple[Any, Any]]
# How a user's functions are called, as errors say it.
CALLED = "run by call=, with the model and a scenario"
DECODED = "run by decode=, with the model, a scenario, two columns and a cache"


@dataclass(frozen=True)
class AdaptedModel:
    """Somebody else's model, and how it is run.

    Attributes:
        module: the model.
        values: what it computes in.
        show: has something computed of a module, shows what is named of it, returns the result.
        call: runs the model on a scenario.
        decode: runs it on some columns, through its cache; None if it has none.
        backward: how it is differentiated; None if it is not.
        names: from places to taps, as they were given.
        dtypes: that its parameters are held in, by name; None where that is not known.
    """

    module: Any
    values: Values
    show: Callable[[Any, Callable[[Any], Any], Seen], Any]
    call: Call
    decode: Decode | None = None
    backward: Backward | None = None
    names: Names = field(default_factory=dict)
    dtypes: Collection[str] | None = None


class AdaptedSubject:
    """Another implementation with a map of names; see `parity.subjects.base.Subject`.

    It has a `start_decode` and a `start_grad` if it was given what these take, and else none.

    Args:
        implementation: what is run.
        named: the kinds of taps that are named.
        config: of the checkpoint.
        dtype: `f64`, `f32` or `bf16`: of weights and activations.
        internal_dtype: of norms, rotations and softmax; float32 at least if not given.
        name: in reports.
        can_force: whether named values can be replaced.
        takes: what it can be given.
        notes: remarks that a report must carry.

    Attributes:
        absent: every kind of tap that is not named.
    """

    def __init__(
        self,
        implementation: AdaptedModel,
        *,
        named: set[str],
        config: LlamaConfig,
        dtype: str,
        internal_dtype: str | None,
        name: str,
        can_force: bool,
        takes: Takes | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        self.takes = ANYTHING if takes is None else takes
        self.name, self.dtype, self.can_force = name, dtype, can_force
        self.internal_dtype = internal_dtype or ("f64" if dtype == "f64" else "f32")
        self._implementation, self._config = implementation, config
        backward = implementation.backward
        self.absent = frozenset(AXES) - named - (backward.kinds if backward else set())
        if implementation.decode is not None:
            self.start_decode = partial(self._through_cache, implementation.decode)
        if backward is not None:
            self.start_grad = lambda inputs: GeneratedRun(backward.by_stage(inputs))

    def start(self, inputs: Inputs) -> ThreadedRun:
        call = self._implementation.call

        def forward(stages: StageExchange) -> None:
            self._pass(
                stages, inputs, None, lambda module: self._asked(call, CALLED, module, inputs)
            )

        return ThreadedRun(forward, self._config.num_hidden_layers, recorder=StageRecord)

    def places(self) -> dict[str, str]:
        """Return what taps are called in the model, by canonical name, `{i}` for the layer."""
        named = sites(self._implementation.names)
        places = zip(self._implementation.names, named, strict=True)
        return {tap.name: place for place, site in places for call in site.calls for tap in call}

    def unshown(self, missing: Collection[str]) -> str | None:
        """Say which names showed nothing of some taps; None if none is missing for that."""
        return unshown(self._implementation.names, missing, self._config.num_hidden_layers)

    def _through_cache(self, decode: Decode, inputs: Inputs, chunks: Sequence[int]) -> ThreadedRun:
        """Feed the inputs through a cache; see `parity.subjects.base.CachedSubject`."""
        ranges = chunk_ranges(inputs, chunks)

        def forward(stages: StageExchange) -> None:
            cache = None
            for start, stop in ranges:

                def chunk(module: Any, start: int = start, stop: int = stop) -> Any:
                    nonlocal cache
                    returned = self._asked(decode, DECODED, module, inputs, start, stop, cache)
                    if not isinstance(returned, tuple) or len(returned) != 2:
                        raise InputError(
                            f"decode: returned {type(returned).__name__}, expected a tuple of two: "
                            "the result and the cache"
                        )
                    result, cache = returned
                    return result

                self._pass(stages, inputs, (start, stop), chunk)

        return ThreadedRun(
            forward, self._config.num_hidden_layers, len(ranges), recorder=StageRecord
        )

    def _asked(self, function: Callable[..., Any], how: str, *arguments: Any) -> Any:
        """Call what the user gave; what it raises is no error of ours."""
        return user_code.call(function, f"subject {self.name}", how, *arguments)

    def _pass(
        self,
        stages: StageExchange,
        inputs: Inputs,
        columns: tuple[int, int] | None,
        compute: Callable[[Any], Any],
    ) -> None:
        """Run the model once, through all stages."""
        one = self._implementation
        dtypes = ShownDtypes(self.dtype, one.dtypes)
        shown = StageRecorder(stages, one.values, self._config, inputs, columns, dtypes)
        stages.begin()
        with one.values.settings():
            one.show(one.module, compute, shown)
        shown.finish()
