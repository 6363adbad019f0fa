"""The JAX model without ever holding more of it than the stage under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.load import raise_problems, structure_problems
from jaxllama.checkpoint.part import Part, load_part
from jaxllama.errors import InputError
from jaxllama.model import Llama
from parity.prepare import weights_dtype
from parity.scenarios import Inputs
from parity.subjects.base import Arrays
from parity.subjects.jaxllama import DTYPES, JaxRun

# A float64 copy of an 8B model's head alone takes 4 GB: that lane must be asked for.
LANES = ("f32", "bf16")
MODES = ("free", "isolated")
NOTE = (
    "streamed: one layer at a time of each dtype; the model compiled as a whole (production) was "
    "not run, nor decoding, gradients or witnesses that hold whole models"
)


class Streamed:
    """`jaxllama.Llama` at one dtype, read from its checkpoint stage by stage.

    All runs of it share the one stage in memory, so they should be stepped in turn.

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
        raise_problems(checkpoint, structure_problems(checkpoint))
        self.checkpoint, self.dtype = checkpoint, dtype
        self.internal_dtype = "f64" if dtype == "f64" else "f32"
        self._stage: tuple[int, Llama] | None = None

    def at(self, stage: int) -> Llama:
        """Return a model that holds the weights of a stage: 0 embedding, 1 to L layers, L + 1."""
        if self._stage is None or self._stage[0] != stage:
            self._stage = None  # let go first: two stages need not fit
            last = self.checkpoint.config.num_hidden_layers + 1
            part: Part = "embed" if stage == 0 else "head" if stage == last else stage - 1
            dtype, stored = jnp.dtype(DTYPES[self.dtype]), weights_dtype(self.checkpoint)
            self._stage = stage, load_part(self.checkpoint, part, dtype=dtype, param_dtype=stored)
        return self._stage[1]

    def start(self, inputs: Inputs) -> StreamedRun:
        return StreamedRun(self, inputs)


class StreamedRun(JaxRun):
    """One pass; between its steps it holds no weights."""

    def __init__(self, subject: Streamed, inputs: Inputs) -> None:
        super().__init__(subject.at(0), inputs, None)
        self._subject = subject
        self._layers = subject.checkpoint.config.num_hidden_layers
        del self._model

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        self._model = self._subject.at(self._stage)
        try:
            return super().step(force)
        finally:
            del self._model

    def _place(self, layer: int) -> int:
        return 0


def check_options(subject: object, modes: Sequence[str], references: Sequence[str]) -> None:
    """Refuse to stream what needs whole models.

    Raises:
        InputError: another subject than this project's model, a mode or a witness.
    """
    if subject != "jaxllama":
        raise InputError("--stream: reads this project's own model; leave out --subject")
    if refused := [mode for mode in modes if mode not in MODES]:
        raise InputError(f"--stream with --mode {','.join(refused)}: expected {', '.join(MODES)}")
    if refused := [name for name in references if name != "torch"]:
        raise InputError(
            f"--stream with --reference {','.join(refused)}: expected torch; the others hold whole "
            "models"
        )
