"""One pass of the JAX model, a jitted stage at a time.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
from numpy.typing import DTypeLike

from jaxllama import masks
from jaxllama.attention import Backend
from jaxllama.cache import KVCache
from jaxllama.masks import Mask, Tokens
from jaxllama.model import DecoderLayer, Llama
from jaxllama.sharding import ModelSharding, gathered, placed
from jaxllama.sharding.hosts import host_array
from jaxllama.taps import Taps
from parity.inputs import Inputs
from parity.subjects.base import Arrays, chunk_ranges, in_stage_order, no_stage_left
from parity.taps import AXES, split_name


class JaxRun:
    """One pass, stage by stage; see `parity.subjects.base.Run`."""

    def __init__(
        self,
        model: Llama,
        inputs: Inputs,
        chunks: Sequence[int] | None,
        cache_dtype: DTypeLike | None = None,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._layers = model.config.num_hidden_layers
        batch, columns = inputs.tokens.shape
        self._ranges = [(0, columns)] if chunks is None else chunk_ranges(inputs, chunks)
        self._cache: KVCache | None = None
        if chunks is not None:
            held = np.dtype(model.dtype if cache_dtype is None else cache_dtype)
            self._cache = KVCache.empty(model.config, batch, columns, held, sharding=model.sharding)
        # Where each column's key stands: its slot in the cache, or itself without one.
        slots = np.maximum(np.cumsum(inputs.valid, axis=1) - 1, 0)
        self._slots = slots if chunks is not None else None
        self._chunk = self._stage = 0
        self._compiled_layer = run_layer

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        if self._chunk == len(self._ranges):
            raise no_stage_left()
        stage = self._stage
        # Nobody writes to what the reference has shown, so on a CPU it need not be copied.
        forced = {n: jax.device_put(value, may_alias=True) for n, value in (force or {}).items()}
        if stage == 0:
            taps = self._embed(forced)
        elif stage <= self._layers:
            taps = self._layer(stage - 1, forced)
        else:
            taps = _head(self._model, self._x, forced)
        self._stage = stage + 1
        columns = self._ranges[self._chunk][1]
        if self._stage == self._layers + 2:
            self._chunk, self._stage = self._chunk + 1, 0
        return in_stage_order(self._by_column(taps, columns), stage, self._layers)

    def _embed(self, forced: Recorded) -> dict[str, jax.Array]:
        start, stop = self._ranges[self._chunk]
        queries = keys = tokens_of(self._inputs, slice(start, stop))
        if self._cache is not None:
            assert queries.segments is not None
            self._cache = self._cache.settle().extend(
                *map(jax.device_put, (queries.positions, queries.valid, queries.segments))
            )
            keys = self._cache.tokens()
        mask = mask_spec(self._inputs).bind(queries, keys, empty_row="zero")
        tokens = jax.device_put(self._inputs.tokens[:, start:stop])
        forced = {name: value for name, value in forced.items() if name in FORCED_SETUP}
        (self._x, self._cos_sin, self._mask), taps = _embed(
            self._model, tokens, queries.positions, mask, forced
        )
        return taps

    def _layer(self, index: int, forced: Recorded) -> dict[str, jax.Array]:
        prefix = f"layers.{index}."
        own = {k.removeprefix(prefix): v for k, v in forced.items() if k.startswith(prefix)}
        self._x, self._cache, taps = self._compiled_layer(
            holder(self._model, index),
            self._place(index),
            self._x,
            self._cos_sin,
            self._mask,
            self._cache,
            own,
            self._model.backend,
            self._model.sharding,
        )
        return {
            f"{name.split('.')[0]}.{index}.{name.split('.')[1]}"
            if name.startswith("cache.")
            else prefix + name: value
            for name, value in taps.items()
        }

    def _place(self, layer: int) -> int:
        """Return where the model at hand keeps a layer."""
        return layer

    def _by_column(self, taps: dict[str, jax.Array], columns: int) -> Arrays:
        """Bring keys from cache slots to the columns of the inputs."""
        arrays = {name: host_array(value) for name, value in taps.items()}
        if self._slots is None:
            return arrays
        slots, valid = self._slots[:, :columns], self._inputs.valid[:, :columns]
        for name, value in arrays.items():
            axes = AXES.get(split_name(name)[0], "")
            if "S" not in axes:
                continue
            at = axes.index("S")
            if valid.all():  # keys stand where their columns do
                arrays[name] = value[(slice(None),) * at + (slice(columns),)]
                continue
            keys = [1] * value.ndim
            keys[0], keys[at] = slots.shape
            value = np.take_along_axis(value, slots.reshape(keys), axis=at)
            real = valid.reshape(keys).astype(value.dtype)
            arrays[name] = value if name.startswith("cache.") else value * real
        return arrays


# A mask or an angle table given from outside replaces the run's own; positions likewise.
FORCED_SETUP = ("rope.inv_freq", "positions", "mask", "embed")


def mask_spec(inputs: Inputs) -> Mask:
    """Return the mask a scenario asks for, as a specification of `jaxllama.masks`."""
    spec = masks.causal() & masks.padding()
    if inputs.segments is not None:
        spec = spec & masks.segments()
    if inputs.window is not None:
        spec = spec & masks.window(inputs.window)
    return spec


def tokens_of(inputs: Inputs, columns: slice) -> Tokens:
    """Return some columns of a scenario as the model is told of them."""
    return Tokens(
        positions=jax.device_put(inputs.positions[:, columns]),
        valid=jax.device_put(inputs.valid[:, columns]),
        segments=jax.device_put(_segments(inputs)[:, columns]),
    )


def _segments(inputs: Inputs) -> np.ndarray:
    return np.zeros_like(inputs.tokens) if inputs.segments is None else inputs.segments


Recorded = dict[str, jax.Array]

Rotation = tuple[jax.Array, jax.Array]

Visible = jax.Array | masks.BoundMask

Layer = Callable[..., tuple[jax.Array, KVCache | None, Recorded]]


# The mask is made dense in the same program: by itself it is a dozen, each compiled for each shape.
@jax.jit
def _embed(
    model: Llama, tokens: jax.Array, positions: jax.Array, mask: masks.BoundMask, forced: Recorded
) -> tuple[tuple[jax.Array, Rotation, Visible], Recorded]:
    taps = Taps(forced)
    return model.embed(tokens, positions, mask.to_bool(), tap=taps), taps.recorded()


def holder(model: Llama, index: int) -> Llama | DecoderLayer:
    """Return what a compiled step is given to have a layer: one program serves all of them."""
    layers = model.layers
    return model if isinstance(layers, DecoderLayer) else layers[index]


def layer_of(held: Llama | DecoderLayer, index: jax.Array | int) -> DecoderLayer:
    """Return the layer of what `holder` gave."""
    return held if isinstance(held, DecoderLayer) else held.layer(index)


def _layer(
    held: Llama | DecoderLayer,
    index: jax.Array | int,
    x: jax.Array,
    cos_sin: Rotation,
    mask: Visible,
    cache: KVCache | None,
    forced: Recorded,
    backend: Backend,
    sharding: ModelSharding | None = None,
) -> tuple[jax.Array, KVCache | None, Recorded]:
    taps = placed(Taps(forced), sharding)
    layer = gathered(layer_of(held, index), sharding)
    x, cache = layer(x, cos_sin, mask, cache, index, backend, taps)
    return x, None if cache is None else cache.on_mesh(sharding), taps.recorded()


# The old cache is dead once its successor exists; keeping it would hold it twice.
compiled_layer: Callable[..., Layer] = partial(
    jax.jit, _layer, donate_argnames=("cache",), static_argnames=("backend", "sharding")
)

run_layer = compiled_layer()


@jax.jit
def _head(model: Llama, x: jax.Array, forced: Recorded) -> Recorded:
    taps = Taps(forced)
    model.head(x, tap=taps)
    return taps.recorded()
