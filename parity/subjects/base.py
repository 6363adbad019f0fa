"""What every implementation under comparison offers: a run that yields its taps stage by stage.

Shapes, here and in the other subjects: B batch, T query tokens, S key tokens, N query heads,
K kv heads, G = N // K, H head dim, D model dim, F mlp dim, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.taps import HEAD_TAPS, LAYER_TAPS, SETUP_TAPS, in_flow_order

Arrays = dict[str, np.ndarray]
# The same where it is only read.
ReadArrays = Mapping[str, np.ndarray]

# What may be otherwise in a pass that is run whole, see `WholeSubject.other_ways`.
WHOLE_MAPS = "with whole attention maps"
UNCOMPILED = "with whole attention maps, operation by operation"


def stage_taps(stage: int, layers: int) -> tuple[str, ...]:
    """Return the full canonical tap names of one stage, in data-flow order.

    Args:
        stage: 0 is the embedding, 1 to `layers` the decoder layers, `layers` + 1 the head.
        layers: L.
    """
    if stage == 0:
        return (*SETUP_TAPS, "embed")
    if stage == layers + 1:
        return tuple(HEAD_TAPS)
    return tuple(f"layers.{stage - 1}.{name}" for name in LAYER_TAPS)


def in_stage_order(values: Arrays, stage: int, layers: int) -> Arrays:
    """Return `values` sorted into the data-flow order of their stage; other names come last."""
    known = {name: values[name] for name in stage_taps(stage, layers) if name in values}
    return known | {name: value for name, value in values.items() if name not in known}


class CheckpointLike(Protocol):
    """What a subject needs of a checkpoint; `jaxllama.checkpoint.Checkpoint` offers it."""

    @property
    def path(self) -> Path | None:
        """Where it lies, None when it exists in memory only."""

    @property
    def format(self) -> str:
        """`hf`, `meta`, `gguf`, ...; a subject reads `hf` by its own means."""

    @property
    def config(self) -> LlamaConfig:
        """The model's numbers."""

    @property
    def hf_config(self) -> Mapping[str, Any]:
        """The same as the content of a Hugging Face config.json."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """What it holds, by canonical (Hugging Face) name."""

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, canonical name and layout."""


class Run(Protocol):
    """One forward pass, handed over stage by stage: embedding, each layer, head (L + 2 stages)."""

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """Compute the next stage and return its taps.

        Args:
            force: other values by full tap name. Each tap is recorded as computed, then replaced
                by the value given here, rounded to the run's dtype, so that every operator is
                judged on inputs of the caller's choice. None: the run keeps its own values.

        Returns:
            Arrays by full canonical name, in data-flow order, canonical layouts, true dtypes
            (bfloat16 as `ml_dtypes.bfloat16`). The run keeps no reference to them.

        Raises:
            RuntimeError: every stage has been handed over.
        """


class Subject(Protocol):
    """An implementation of a model with its weights, ready to run.

    Attributes:
        name: how reports call it.
        dtype: `f64`, `f32` or `bf16`: of its weights and activations.
        absent: tap kinds it cannot show, without layer index: `layers.attn_scores`.
        can_force: whether `Run.step` obeys `force`.
        internal_dtype: of its norms, softmax and rotations: what casts to float32 there has
            float32's rounding in a float64 run too.
    """

    name: str
    dtype: str
    absent: frozenset[str]
    can_force: bool
    internal_dtype: str

    def start(self, inputs: Inputs) -> Run:
        """Begin a forward pass over a scenario's inputs."""


class CachedSubject(Subject, Protocol):
    """A subject that can also run through its own key-value cache."""

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        """Begin to feed the inputs through the cache, some columns at a time.

        Each chunk takes L + 2 steps of the run, with the taps of a forward pass over the chunk's
        columns, and after `output` the cache of that layer as the chunk leaves it. With t columns
        in the chunk and C columns fed so far, the chunk included, the shapes are those of a
        forward pass with T = t and S = C, and `cache.{i}.k`, `cache.{i}.v` are [B C K H].

        Keys are counted in the *columns* of `inputs`, pads included, whatever order the subject's
        own cache has: column c of a row is its slot `cumsum(valid)[c] - 1`. Cells of pad columns,
        as keys or as queries, carry no meaning.

        Args:
            inputs: the whole teacher-forced sequence; T columns.
            chunks: how many columns each call takes, e.g. `[5, 1, 1]` for a prompt of 5 and two
                decoding steps; they add up to T.

        Raises:
            InputError: chunks that are not positive or do not add up to T.
        """


class DifferentiableSubject(Subject, Protocol):
    """A subject that also shows the gradients of its loss."""

    def start_grad(self, inputs: Inputs) -> Run:
        """Begin a backward pass of the mean cross-entropy of every real token's successor.

        It takes L + 2 steps: the head, the layers from last to first, the embedding. Names and
        their order are those of `parity.taps.gradient_names`: `loss`, `grad.<parameter name>` in
        the parameter's own layout, and `grad.<tap>` for the loss's gradient in each activation.
        All are of the run's dtype. A gradient in an activation's pads or hidden cells carries no
        meaning. Nothing is forced: a step's argument is None.

        Raises:
            InputError: no token has a successor.
        """


class WholeSubject(Subject, Protocol):
    """A subject that is compiled whole where nobody watches, and run stage by stage where one does.

    Its `production` and what it offers beside show of a pass what comes out of it alone.
    """

    def production(self) -> Subject:
        """Return the subject as users run it."""

    def other_ways(self) -> Mapping[str, Subject]:
        """Return the same, run otherwise, by what is otherwise in words: always more."""

    def in_blocks(self) -> Subject | None:
        """Return it watched, but attending in blocks; None if it does not where nobody watches."""


class GeneratedRun:
    """A `Run` whose stages a generator yields; they cannot be forced."""

    def __init__(self, stages: Iterator[Arrays]) -> None:
        self._stages = stages

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        try:
            values = next(self._stages)
        except StopIteration:
            raise no_stage_left() from None
        return {name: values[name] for name in in_flow_order(values)}


def no_stage_left() -> RuntimeError:
    """Return what a run raises that is asked for more stages than it has."""
    return RuntimeError("this run is over: every stage has been handed over")


def chunk_ranges(inputs: Inputs, chunks: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first column and the one past the last of each chunk.

    Raises:
        InputError: chunks that are not positive or do not add up to T.
    """
    columns = inputs.tokens.shape[1]
    if any(chunk < 1 for chunk in chunks) or sum(chunks) != columns:
        raise InputError(
            f"chunks {list(chunks)}: each must be at least 1 and their sum, {sum(chunks)}, the "
            f"inputs' {columns} columns"
        )
    stops = list(accumulate(chunks))
    return list(zip([0, *stops[:-1]], stops, strict=True))


def can_decode(subject: Subject, scenario: str) -> bool:
    """Return whether a subject runs a scenario through a cache; traces do what was captured."""
    captured: Collection[tuple[str, str]] | None = getattr(subject, "captured", None)
    return hasattr(subject, "start_decode") and (
        captured is None or (scenario, "decode") in captured
    )


def require_decoding(subject: Subject) -> CachedSubject:
    """Return the subject as one that runs through a cache, or refuse it."""
    if not hasattr(subject, "start_decode"):
        raise InputError(
            f"mode decode: subject {subject.name} shows no run through a cache; give decode= "
            "to what makes it (parity/subjects/README.md), or it a start_decode "
            "(parity.subjects.base.CachedSubject)"
        )
    return cast(CachedSubject, subject)


def require_gradients(subject: Subject) -> DifferentiableSubject:
    """Return the subject as one that shows gradients, or refuse it."""
    if not hasattr(subject, "start_grad"):
        raise InputError(
            f"{subject.name}: offers no gradients; leave out mode grad, give parameters= to "
            "what makes it (parity/subjects/README.md), or it a start_grad "
            "(parity.subjects.base.DifferentiableSubject)"
        )
    return cast(DifferentiableSubject, subject)


def unshown_names(subject: Subject, missing: Collection[str]) -> list[str]:
    """Return in one sentence, or none, which of a user's names showed nothing of some taps."""
    ask = getattr(subject, "unshown", None)
    said = ask(missing) if ask is not None and missing else None
    return [] if said is None else [said]
