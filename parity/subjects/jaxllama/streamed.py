"""The JAX model without ever holding more of it than the stage under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.checks import raise_problems, structure_problems
from jaxllama.checkpoint.load.model import Part, load_part
from jaxllama.errors import InputError, argument
from jaxllama.model import Llama
from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.jaxllama.run import JaxRun, Layer, compiled_layer, run_layer
from parity.subjects.jaxllama.subject import JaxLlama, weights_dtype

# A float64 copy of an 8B model's head alone takes 4 GB: that lane must be asked for.
DTYPES = ("f32", "bf16")
MODES = ("free", "isolated")
# The tokenizer is the checkpoint's and needs no weights.
ALLOWED = (*MODES, "tokens")
NOTE = (
    "streamed: one layer at a time; the model compiled as a whole (production) was "
    "not run, nor decoding, gradients or witnesses that hold whole models"
)


class StageWeights:
    """The weights of one stage of a checkpoint at a time, for all dtypes that run side by side.

    Args:
        checkpoint: where they come from; read lazily.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        raise_problems(checkpoint, structure_problems(checkpoint))
        self._checkpoint = checkpoint  # keeps its id, by which stages are shared
        self._held: tuple[int, Llama] | None = None

    def at(self, stage: int) -> Llama:
        """Return a model that holds the weights of a stage: 0 embedding, 1 to L layers, L + 1."""
        if self._held is None or self._held[0] != stage:
            self._held = None  # let go first: two stages need not fit
            last = self._checkpoint.config.num_hidden_layers + 1
            part: Part = "embed" if stage == 0 else "head" if stage == last else stage - 1
            stored = weights_dtype(self._checkpoint)
            self._held = stage, load_part(self._checkpoint, part, dtype=stored, param_dtype=stored)
        return self._held[1]


_shared: WeakValueDictionary[int, StageWeights] = WeakValueDictionary()


def stages(checkpoint: Checkpoint) -> StageWeights:
    """Return a checkpoint's stages, shared with all who ask for them.

    Raises:
        CheckpointError: tensors missing, unexpected, or of another shape or kind.
    """
    found = _shared.get(id(checkpoint)) or StageWeights(checkpoint)
    _shared[id(checkpoint)] = found
    return found


class Streamed:
    """`jaxllama.Llama` at one dtype, read from its checkpoint stage by stage.

    All runs share the one stage in memory, those at other dtypes too, so they should be stepped in
    turn.

    Args:
        checkpoint: where the weights come from; read lazily.
        dtype: `f64`, `f32` or `bf16`.

    Raises:
        CheckpointError: tensors missing, unexpected, or of another shape or kind.
    """

    name = "jaxllama"
    can_force = True
    absent: frozenset[str] = frozenset()

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.stages, self.checkpoint, self.dtype = stages(checkpoint), checkpoint, dtype
        self.internal_dtype = "f64" if dtype == "f64" else "f32"

    def at(self, stage: int) -> Llama:
        """Return a model of this dtype that holds the weights of a stage."""
        return JaxLlama(self.stages.at(stage), self.dtype).model

    def start(self, inputs: Inputs) -> StreamedRun:
        return StreamedRun(self, inputs)


class StreamedRun(JaxRun):
    """One pass; between its steps it holds no weights."""

    def __init__(self, subject: Streamed, inputs: Inputs) -> None:
        super().__init__(subject.at(0), inputs, None)
        self._subject = subject
        self._layers = subject.checkpoint.config.num_hidden_layers
        self._compiled_layer = frugal_layer()
        del self._model

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        self._model = self._subject.at(self._stage)
        try:
            return super().step(force)
        finally:
            del self._model

    def _place(self, layer: int) -> int:
        return 0


# On a CPU, XLA converts all of a layer's weights before it multiplies by the first, in the hope of
# doing both at once: 12.8 GB of float32 for a layer of the 405B model, against 3.5 GB for the
# largest of them.
_FRUGAL = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@cache
def frugal_layer() -> Layer:
    """Return the compiled step of a layer, scheduled for memory where XLA can be told to."""
    if jax.default_backend() != "cpu":
        return run_layer
    try:
        jax.jit(jnp.negative, compiler_options=_FRUGAL)(0.0)
    except RuntimeError:  # options are no stable interface of XLA's
        return run_layer
    return compiled_layer(compiler_options=_FRUGAL)


def check_options(
    subject: object, modes: Sequence[str], references: Sequence[str], mesh: str | None
) -> None:
    """Refuse to stream what needs whole models.

    Raises:
        InputError: another subject than this project's model, a mode, a witness, or a mesh.
    """
    if mesh is not None:
        raise InputError(
            f"{argument('stream')} with {argument('mesh', mesh)}: a layer at a time is run on one "
            "device; leave out one of the two"
        )
    if subject != "jaxllama":
        raise InputError(
            f"{argument('stream')}: reads this project's own model; leave out {argument('subject')}"
        )
    if refused := [mode for mode in modes if mode not in ALLOWED]:
        raise InputError(
            f"{argument('stream')} with {argument('modes', ','.join(refused))}: expected "
            f"{', '.join(ALLOWED)}"
        )
    if refused := [name for name in references if name != "torch"]:
        raise InputError(
            f"{argument('stream')} with {argument('reference', ','.join(refused))}: expected torch;"
            " the others hold whole models"
        )
