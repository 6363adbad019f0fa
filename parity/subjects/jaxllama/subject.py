"""The JAX model of this project as a subject: one jitted stage at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import DTypeLike

from jaxllama import masks
from jaxllama.attention import Backend
from jaxllama.checkpoint import Checkpoint
from jaxllama.config import LlamaConfig
from jaxllama.dtypes import parse, short_name
from jaxllama.errors import argument
from jaxllama.model import Llama
from parity.inputs import Inputs
from parity.subjects.base import Arrays, GeneratedRun
from parity.subjects.jaxllama import grad
from parity.subjects.jaxllama.run import JaxRun, mask_spec, tokens_of
from parity.taps import AXES, PARAMETER_GRADIENTS

DTYPES: dict[str, DTypeLike] = {"f64": jnp.float64, "f32": jnp.float32, "bf16": jnp.bfloat16}
# The keys of a forward pass that shows no weights: judged by attention's output alone.
WEIGHTLESS = frozenset(
    prefix + name
    for prefix in ("", "grad.")
    for name in ("layers.attn_scores", "layers.attn_probs")
)


class JaxLlama:
    """`jaxllama.Llama` at one dtype; see `parity.subjects.base.Subject`.

    Args:
        model: the loaded model; its weights are shared, not copied.
        dtype: `f64`, `f32` or `bf16`: what it computes in, whatever its weights are stored as.
        backend: attention implementation; the fused ones show no scores and probabilities.
        name: how reports call it.
    """

    can_force = True

    def __init__(
        self, model: Llama, dtype: DTypeLike, *, backend: Backend = "xla", name: str = "jaxllama"
    ) -> None:
        self.model = nnx.merge(*nnx.split(model))
        self.model.dtype = parse(dtype)
        self.model.backend = backend
        self.dtype = short_name(dtype)
        self.internal_dtype = "f64" if self.dtype == "f64" else "f32"
        self.name = name
        self.absent = frozenset() if backend == "xla" else WEIGHTLESS

    def start(self, inputs: Inputs) -> JaxRun:
        return JaxRun(self.model, inputs, None)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> JaxRun:
        return JaxRun(self.model, inputs, chunks)

    def start_grad(self, inputs: Inputs) -> GeneratedRun:
        return GeneratedRun(grad.by_stage(self.model, inputs))

    def production(self) -> Production:
        """Return the same model as users run it: scanned, compiled whole, without taps."""
        return Production(self)


class Production:
    """The scanned and jitted model, which shows its logits alone.

    A run that is watched must not differ from one that is not: compilers fuse other operations
    when nobody asks for what lies between them.
    """

    can_force = False
    absent = frozenset(AXES) - {"logits", "loss"} - PARAMETER_GRADIENTS

    def __init__(self, watched: JaxLlama) -> None:
        self.model = watched.model
        self.dtype = watched.dtype
        self.internal_dtype = watched.internal_dtype
        self.name = f"{watched.name}-production"

    def start(self, inputs: Inputs) -> ProductionRun:
        return ProductionRun(self.model, inputs)

    def start_grad(self, inputs: Inputs) -> GeneratedRun:
        return GeneratedRun(grad.whole(self.model, inputs))


class ProductionRun:
    """Stages without taps, then the logits of the whole forward pass."""

    def __init__(self, model: Llama, inputs: Inputs) -> None:
        self._model, self._inputs = model, inputs
        self._stages_left = model.config.num_hidden_layers + 2

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        self._stages_left -= 1
        if self._stages_left:
            return {}
        tokens = tokens_of(self._inputs, slice(None))
        mask = mask_spec(self._inputs).bind(tokens, tokens, empty_row="zero")
        ids = jax.device_put(self._inputs.tokens)
        return {"logits": np.asarray(_forward(self._model, ids, mask, tokens.positions))}


@jax.jit
def _forward(
    model: Llama, tokens: jax.Array, mask: masks.BoundMask, positions: jax.Array
) -> jax.Array:
    return model(tokens, positions=positions, mask=mask)[0]


def with_config(checkpoint: Checkpoint, config: LlamaConfig) -> Checkpoint:
    """Return the checkpoint under the subject's config, which an error then names as its source."""
    if config == checkpoint.config:
        return checkpoint
    source = f"{checkpoint.config_source} with {argument('overrides')}"
    return replace(checkpoint, config=config, config_source=source)


def weights_dtype(checkpoint: Checkpoint) -> np.dtype:
    """Return a dtype that holds every weight exactly: all lanes share one copy of them."""
    stored = {info.dtype for info in checkpoint.tensors.values()}
    if len(stored) == 1:
        return stored.pop()
    return np.dtype(np.float64 if np.dtype(np.float64) in stored else np.float32)
