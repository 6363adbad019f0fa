"""A fault put into the JAX side on purpose, and the subject that has it.

A fault is code of its own: it changes weights, the configuration, or functions of `jaxllama` while
a stage of the pass runs. `jaxllama` has no switches for it, and `parity.diagnose.causes`, which has
to find out what is wrong, shares no code with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.checkpoint import Checkpoint, in_memory, load_model
from jaxllama.config import LlamaConfig
from jaxllama.model import Llama
from parity.inputs import Inputs
from parity.subjects.base import Arrays, GeneratedRun
from parity.subjects.jaxllama.grad import Loss, by_stage, loss_of
from parity.subjects.jaxllama.run import JaxRun
from parity.subjects.jaxllama.subject import DTYPES

Weights = dict[str, np.ndarray]
# What stands in the place of what: owner, attribute, replacement.
Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Moment:
    """Where a pass is.

    Attributes:
        layer: which layer is about to run; None for the embedding and the head.
        layers: L.
        chunk: number of the call, 0 unless decoding.
        inputs: the scenario.
        run: the run itself.
    """

    layer: int | None
    layers: int
    chunk: int
    inputs: Inputs
    run: Any  # whose attributes faults reach into


Patches = Callable[[Moment], Sequence[Patch]]


@dataclass(frozen=True)
class Fault:
    """One way to be wrong, in one place, to one degree.

    Attributes:
        family: its number in the list of published faults, or a letter of our own.
        kind: what is wrong, in a few words; injections of one kind differ in place and degree.
        variant: place and degree.
        expected: the first tap that differs.
        cause: identifier of the cause that ought to be named; empty if it has none.
        flagged: setup taps that differ too.
        step: the chunk of a decode run in which it shows first.
        model: which small checkpoint shows it, see `parity.selftest.models`.
        scenario, lane, mode: on which inputs, in which dtype; forwards without a cache (`free`) or
            with one (`decode`), or backwards (`grad`).
        patches: what is replaced while a stage runs.
        weights: changes a copy of the checkpoint's weights.
        config: returns the configuration the subject works with.
        setup: called on the subject's run before its first stage.
        loss: what is differentiated in mode `grad`, of logits, ids and `jaxllama.masks.Tokens`.
    """

    family: str
    kind: str
    variant: str
    expected: str
    cause: str = ""
    _: KW_ONLY
    flagged: tuple[str, ...] = ()
    step: int = 0
    model: str = "base"
    scenario: str = "causal"
    lane: str = "f64"
    mode: str = "free"
    patches: Patches | None = None
    weights: Callable[[Weights], None] | None = None
    config: Callable[[LlamaConfig], LlamaConfig] | None = None
    setup: Callable[[JaxRun], None] | None = None
    loss: Loss = loss_of

    @property
    def id(self) -> str:
        """Name the injection: `R3 theta falls back [1e4, base causal f64]`."""
        how = [] if self.mode == "free" else [self.mode]
        where = " ".join([self.model, self.scenario, self.lane, *how])
        return f"{self.family} {self.kind} [{self.variant}; {where}]"

    @property
    def decodes(self) -> bool:
        """Whether it is looked for in a run through the cache."""
        return self.mode == "decode"


class FaultySubject:
    """The JAX model with a fault, or without one; see `parity.subjects.base.Subject`.

    It runs operation by operation: nothing compiled before a patch outlives it, and every injection
    shares the same compiled operations.

    Args:
        checkpoint: what the reference runs.
        dtype: `f64`, `f32` or `bf16`.
        fault: None for the clean twin.
    """

    can_force = True
    absent: frozenset[str] = frozenset()

    def __init__(self, checkpoint: Checkpoint, dtype: str, fault: Fault | None) -> None:
        self.name = "jaxllama"
        self.dtype = dtype
        self.internal_dtype = "f64" if dtype == "f64" else "f32"
        self.fault = fault
        self.model = faulty_model(checkpoint, fault)
        self.model.dtype = jnp.dtype(DTYPES[dtype])

    def start(self, inputs: Inputs) -> FaultyRun:
        return FaultyRun(self, inputs, None)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> FaultyRun:
        return FaultyRun(self, inputs, chunks)

    def start_grad(self, inputs: Inputs) -> FaultyGradRun:
        return FaultyGradRun(self, inputs)


class FaultyRun(JaxRun):
    """A pass during which the fault's patches are in force, and only then."""

    def __init__(
        self, subject: FaultySubject, inputs: Inputs, chunks: Sequence[int] | None
    ) -> None:
        super().__init__(subject.model, inputs, chunks)
        self._fault = subject.fault
        if self._fault is not None and self._fault.setup is not None:
            self._fault.setup(self)

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        with in_force(self._fault, self._moment()):
            return super().step(force)

    def _moment(self) -> Moment:
        inside = 1 <= self._stage <= self._layers
        layer = self._stage - 1 if inside else None
        return Moment(layer, self._layers, self._chunk, self._inputs, self)


class FaultyGradRun:
    """A backward pass during which the fault's patches are in force.

    With the head's stage, the first, goes the forward pass: what is wrong backwards alone does not
    show there.
    """

    def __init__(self, subject: FaultySubject, inputs: Inputs) -> None:
        loss = loss_of if subject.fault is None else subject.fault.loss
        self._fault, self._inputs = subject.fault, inputs
        self._run = GeneratedRun(by_stage(subject.model, inputs, loss))
        self._layers = subject.model.config.num_hidden_layers
        self._stage = 0

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        inside = 1 <= self._stage <= self._layers
        layer = self._layers - self._stage if inside else None
        self._stage += 1
        with in_force(self._fault, Moment(layer, self._layers, 0, self._inputs, self)):
            return self._run.step(force)


@contextmanager
def in_force(fault: Fault | None, moment: Moment) -> Iterator[None]:
    """Run operation by operation, with what a fault replaces at a moment replaced."""
    with ExitStack() as stack:
        stack.enter_context(jax.disable_jit())
        if fault is not None and fault.patches is not None:
            for owner, name, replacement in fault.patches(moment):
                stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def faulty_model(checkpoint: Checkpoint, fault: Fault | None) -> Llama:
    """Load the model a fault's subject runs: with its weights and its configuration.

    Weights stay as stored: widening them to a lane's dtype is exact.
    """
    if fault is not None and fault.weights is not None:
        weights = {name: checkpoint.read(name).copy() for name in checkpoint.tensors}
        fault.weights(weights)
        config = checkpoint.config
        if "lm_head.weight" in weights:
            config = config.replace(tie_word_embeddings=False)
        checkpoint = in_memory(config, weights)
    if fault is not None and fault.config is not None:
        checkpoint = replace(checkpoint, config=fault.config(checkpoint.config))
    return load_model(checkpoint, dtype="float32", param_dtype=None)


def backwards(kind: str, variant: str, expected: str, cause: str, **more: Any) -> Fault:
    """Return a fault to be looked for in gradients, by default those of packed documents."""
    settings: dict[str, Any] = {"scenario": "packed", "mode": "grad"} | more
    return Fault("D", kind, variant, expected, cause, **settings)


def number_families(groups: Sequence[list[Fault]], *, start: int) -> list[Fault]:
    """Return groups of faults, each a family with a number; the first of each in float32 too."""
    return [
        replace(fault, family=f"{fault.family}{number}")
        for number, group in enumerate(groups, start)
        for fault in (*group, replace(group[0], lane="f32"))
    ]


def with_fields(**fields: Any) -> Callable[[LlamaConfig], LlamaConfig]:
    """Return a change of some fields of the configuration."""
    return lambda config: config.replace(**fields)


def everywhere(*patches: Patch) -> Patches:
    """Return patches that are in force during every stage."""
    return lambda moment: patches


def replaced_in(layer: int | None, *patches: Patch) -> Patches:
    """Return fixed patches that are in force in one layer, or in all of them if None."""
    return in_layer(layer, lambda moment: patches)


def in_layer(layer: int | None, make: Callable[[Moment], Sequence[Patch]]) -> Patches:
    """Return patches that are in force in one layer, or in all of them if None."""

    def patches(moment: Moment) -> Sequence[Patch]:
        if moment.layer is None or (layer is not None and moment.layer != layer):
            return ()
        return make(moment)

    return patches


def in_head(make: Callable[[Moment], Any]) -> Patches:
    """Return patches that are in force where no layer runs."""
    return lambda moment: make(moment) if moment.layer is None else ()


def nth_calls(original: Callable, wrong: Callable, *which: int) -> Callable:
    """Return a function that is `wrong` on its n-th calls (from 0), `original` on the others."""
    count = -1

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return (wrong if count in which else original)(*args, **kwargs)

    return function
