"""The JAX model of this project as a subject: one jitted stage at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

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
from jaxllama.sharding.hosts import host_array
from jaxllama.taps import Tapper, Untapped, untapped
from parity.inputs import Inputs
from parity.subjects.base import UNCOMPILED, WHOLE_MAPS, Arrays, GeneratedRun, Run, Subject
from parity.subjects.jaxllama import grad
from parity.subjects.jaxllama.rows import CutRun, cut_stages, rows_added, with_rows
from parity.subjects.jaxllama.run import JaxRun, mask_spec, tokens_of
from parity.taps import AXES, PARAMETER_GRADIENTS

DTYPES: dict[str, DTypeLike] = {"f64": jnp.float64, "f32": jnp.float32, "bf16": jnp.bfloat16}
# The keys of a forward pass that shows no weights: judged by attention's output alone.
WEIGHTLESS = frozenset(
    prefix + name
    for prefix in ("", "grad.")
    for name in ("layers.attn_scores", "layers.attn_probs")
)


class _LookingOn(Untapped):
    """Records nothing either, but stands where somebody might look: attention is of whole maps."""

    watched = True


_LOOKING_ON = _LookingOn()


class JaxLlama:
    """`jaxllama.Llama` at one dtype; see `parity.subjects.base.Subject`.

    Args:
        model: the loaded model; its weights are shared, not copied.
        dtype: `f64`, `f32` or `bf16`: what it computes in, whatever its weights are stored as.
        backend: attention implementation; the fused ones show no scores and probabilities.
        name: how reports call it.
        cache_dtype: of its cache; `dtype` if None.
    """

    can_force = True

    def __init__(
        self,
        model: Llama,
        dtype: DTypeLike,
        *,
        backend: Backend = "xla",
        name: str = "jaxllama",
        cache_dtype: DTypeLike | None = None,
    ) -> None:
        self.model = nnx.merge(*nnx.split(model))
        self.model.dtype = parse(dtype)
        self.model.backend = backend
        self.dtype = short_name(dtype)
        self.internal_dtype = "f64" if self.dtype == "f64" else "f32"
        self.name, self.cache_dtype = name, cache_dtype
        self.absent = frozenset() if backend == "xla" else WEIGHTLESS

    def start(self, inputs: Inputs) -> Run:
        return self._begun(inputs, None)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        return self._begun(inputs, chunks)

    def _begun(self, inputs: Inputs, chunks: Sequence[int] | None) -> Run:
        rows = len(inputs.tokens)
        added = rows_added(self.model, rows)
        run = JaxRun(self.model, with_rows(inputs, added), chunks, self.cache_dtype)
        return CutRun(run, rows, added) if added else run

    def start_grad(self, inputs: Inputs) -> GeneratedRun:
        rows = len(inputs.tokens)
        more = with_rows(inputs, rows_added(self.model, rows))
        return GeneratedRun(cut_stages(grad.by_stage(self.model, more), rows))

    def production(self) -> Production:
        """Return the same model as users run it: compiled whole, without taps."""
        return Production(self)

    def other_ways(self) -> dict[str, Subject]:
        """Return `production` run otherwise, by what is otherwise in words: always more."""
        ways: dict[str, Subject] = {}
        if self.model.backend == "xla":
            ways[WHOLE_MAPS] = Production(self, tap=_LOOKING_ON)
        return ways | {UNCOMPILED: Production(self, tap=_LOOKING_ON, compiled=False)}

    def in_blocks(self) -> JaxLlama | None:
        """Return it watched, but attending in blocks; None if it does not where nobody watches."""
        if self.model.backend != "xla":
            return None
        return JaxLlama(self.model, self.dtype, backend="blockwise", name=f"{self.name}-blockwise")


class Production:
    """The jitted model, which shows its logits alone.

    A run that is watched must not differ from one that is not: attention is in blocks where nobody
    asks for whole maps, and compilers fuse other operations.

    Args:
        watched: the subject.
        tap: `untapped`, or another that records nothing: attention is of whole maps then.
        compiled: whether as one program; else operation by operation.
    """

    can_force = False
    absent = frozenset(AXES) - {"logits", "loss"} - PARAMETER_GRADIENTS

    def __init__(self, watched: JaxLlama, *, tap: Tapper = untapped, compiled: bool = True) -> None:
        self.model, self.tap, self.compiled = watched.model, tap, compiled
        self.dtype = watched.dtype
        self.internal_dtype = watched.internal_dtype
        self.name = f"{watched.name}-production"

    def start(self, inputs: Inputs) -> Run:
        rows = len(inputs.tokens)
        added = rows_added(self.model, rows)
        run = ProductionRun(self, with_rows(inputs, added))
        return CutRun(run, rows, added) if added else run

    def start_grad(self, inputs: Inputs) -> GeneratedRun:
        added = rows_added(self.model, len(inputs.tokens))
        return GeneratedRun(self._gradients(with_rows(inputs, added)))

    def _gradients(self, inputs: Inputs) -> Iterator[Arrays]:
        with jax.disable_jit(not self.compiled):
            stages = list(grad.whole(self.model, inputs, tap=self.tap))
        yield from stages


class ProductionRun:
    """Stages without taps, then the logits of the whole forward pass."""

    def __init__(self, subject: Production, inputs: Inputs) -> None:
        self._subject, self._inputs = subject, inputs
        self._stages_left = subject.model.config.num_hidden_layers + 2

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        self._stages_left -= 1
        if self._stages_left:
            return {}
        tokens = tokens_of(self._inputs, slice(None))
        mask = mask_spec(self._inputs).bind(tokens, tokens, empty_row="zero")
        ids, subject = jax.device_put(self._inputs.tokens), self._subject
        with jax.disable_jit(not subject.compiled):
            logits = whole_pass(subject.model, ids, mask, tokens.positions, subject.tap)
        return {"logits": host_array(logits)}


@partial(jax.jit, static_argnames=("tap",))
def whole_pass(
    model: Llama, tokens: jax.Array, mask: masks.BoundMask, positions: jax.Array, tap: Tapper
) -> jax.Array:
    """Return the logits [B T V] of a forward pass compiled as one program."""
    return model(tokens, positions=positions, mask=mask, tap=tap)[0]


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
