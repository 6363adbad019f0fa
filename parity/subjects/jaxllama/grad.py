"""Gradients of the JAX model: stage by stage with every activation's, and whole as in training.

Shapes: B batch, T tokens, D model dim, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllama.attention import Backend
from jaxllama.forms import Path, parts_of
from jaxllama.loss import next_token_loss
from jaxllama.masks import BoundMask, Tokens
from jaxllama.model import DecoderLayer, Llama
from jaxllama.sharding import ModelSharding, placed
from jaxllama.sharding.hosts import host_array
from jaxllama.taps import Tapper, Taps, Untapped, untapped
from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.jaxllama.run import (
    Recorded,
    Rotation,
    Visible,
    holder,
    layer_of,
    mask_spec,
    tokens_of,
)

# A module's weights by where it keeps them, and the loss of logits and tokens.
Weights = dict[Path, jax.Array]
Loss = Callable[[jax.Array, jax.Array, Tokens], jax.Array]


def loss_of(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Return the loss that `parity` differentiates."""
    segments = None if tokens.segments is None else jnp.asarray(tokens.segments)
    return next_token_loss(logits, ids, valid=jnp.asarray(tokens.valid), segments=segments)


def by_stage(model: Llama, inputs: Inputs, loss: Loss = loss_of) -> Iterator[Arrays]:
    """Differentiate head, layers and embedding one after the other, activations included.

    Each is differentiated by itself, from the gradient that the one above it hands down: one
    layer's weights and gradients are alive at a time.

    Args:
        model: whose dtype the gradients have, whatever its weights are stored as.
        inputs: the scenario.
        loss: what is differentiated.

    Yields:
        Gradients under canonical names, as `parity.subjects.base.DifferentiableSubject` orders
        them.
    """
    tokens, ids = tokens_of(inputs, slice(None)), jax.device_put(inputs.tokens)
    spec = mask_spec(inputs).bind(tokens, tokens, empty_row="zero")
    layers = model.config.num_hidden_layers
    x, cos_sin, mask = _embedded(model, ids, tokens.positions, spec)
    streams = [x]
    for index in range(layers):
        held = holder(model, index)
        streams.append(
            _layer(held, index, streams[-1], cos_sin, mask, model.backend, model.sharding)
        )

    value, (weights, taps, pulled) = _head_gradients(model, streams.pop(), ids, tokens, loss)
    tied = weights.pop(("embed_tokens", "weight"), None)
    yield {"loss": host_array(value)} | _named(model, weights) | _prefixed("grad.", taps)
    for index in reversed(range(layers)):
        weights, taps, pulled = _layer_gradients(
            holder(model, index),
            index,
            streams.pop(),
            cos_sin,
            mask,
            pulled,
            model.backend,
            model.dtype,
            model.sharding,
        )
        taps["input"] = pulled  # the tap's own would leave out what lies before the tap
        own = {("layers", index, *path): value for path, value in weights.items()}
        yield _named(model, own) | _prefixed(f"grad.layers.{index}.", taps)
    gradient = _embedding_gradient(model, ids, pulled)
    if tied is not None:
        gradient += tied
    embedding = _named(model, {("embed_tokens", "weight"): gradient})
    yield {"grad.embed": host_array(pulled)} | embedding


def whole(
    model: Llama, inputs: Inputs, loss: Loss = loss_of, *, tap: Tapper = untapped
) -> Iterator[Arrays]:
    """Differentiate the model in one compiled program, as training does.

    Args:
        model: as for `by_stage`.
        inputs: the scenario.
        loss: what is differentiated.
        tap: one that records nothing.

    Yields:
        The loss and the parameters' gradients, in the stages of `by_stage`.
    """
    tokens, ids = tokens_of(inputs, slice(None)), jax.device_put(inputs.tokens)
    mask = mask_spec(inputs).bind(tokens, tokens, empty_row="zero")
    value, weights = _gradients(model, ids, mask, tokens, loss, tap)
    named = _named(model, weights)
    embedding = {EMBEDDING: named.pop(EMBEDDING)}
    layers = [
        {name: named.pop(name) for name in list(named) if name.startswith(f"{LAYERS}{index}.")}
        for index in range(model.config.num_hidden_layers)
    ]
    yield {"loss": host_array(value)} | named
    yield from reversed(layers)
    yield embedding


EMBEDDING, LAYERS = "grad.model.embed_tokens.weight", "grad.model.layers."


def _named(model: Llama, weights: Mapping[Path, jax.Array]) -> Arrays:
    """Return gradients under the parameters' canonical names."""
    return {f"grad.{name}": value for name, value in named_parameters(model, weights).items()}


def named_parameters(model: Llama, weights: Mapping[Path, jax.Array]) -> Arrays:
    """Return what is of a parameter's shape under its canonical name, whatever the form."""
    found = {}
    for path, gradient in weights.items():
        whole = host_array(gradient)
        for part in parts_of(path, model.config):
            name = ".".join(("model", *part.path))
            if part.layer is not None:
                name = f"model.layers.{part.layer}.{'.'.join(part.path[1:])}"
            found[name.replace("model.lm_head", "lm_head")] = whole[part.index]
    return found


def _prefixed(prefix: str, values: Recorded) -> Arrays:
    return {prefix + name: host_array(value) for name, value in values.items()}


class Nudges(Untapped):
    """Adds to every tap what is given for it: the loss's gradient in that is the tap's own."""

    watched = True

    def __init__(self, nudges: Mapping[str, jax.Array]) -> None:
        self._nudges = nudges

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        return value + self._nudges[name] if name in self._nudges else value


class _Apart:
    """A module taken apart into weights in the run's dtype and what makes it whole again.

    Its stored dtype would otherwise be its gradients' dtype too.
    """

    def __init__(self, module: nnx.Module, dtype: np.dtype) -> None:
        self._graph, state = nnx.split(module)
        self._held = dict(nnx.to_flat_state(state))
        self.weights: Weights = {p: held[...].astype(dtype) for p, held in self._held.items()}

    def holding(self, weights: Weights) -> Any:
        """Return the module with these weights in place of its own."""
        replaced = {path: self._held[path].replace(value) for path, value in weights.items()}
        return nnx.merge(self._graph, nnx.from_flat_state(self._held | replaced))


def _zeros(function: Callable[[Taps], object]) -> Recorded:
    """Return a zero for each tap that `function` passes."""

    def recorded() -> Recorded:
        taps = Taps()
        function(taps)
        return taps.recorded()

    shapes = jax.eval_shape(recorded)
    return {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}


@jax.jit
def _embedded(
    model: Llama, ids: jax.Array, positions: jax.Array, mask: BoundMask
) -> tuple[jax.Array, Rotation, Visible]:
    return model.embed(ids, positions, mask.to_bool())


@partial(jax.jit, static_argnames=("backend", "sharding"))
def _layer(
    held: Llama | DecoderLayer,
    index: jax.Array | int,
    x: jax.Array,
    cos_sin: Rotation,
    mask: Visible,
    backend: Backend,
    sharding: ModelSharding | None,
) -> jax.Array:
    tap = placed(untapped, sharding)
    return layer_of(held, index)(x, cos_sin, mask, None, index, backend, tap)[0]


@partial(jax.jit, static_argnames=("loss",))
def _head_gradients(
    model: Llama, x: jax.Array, ids: jax.Array, tokens: Tokens, loss: Loss
) -> tuple[jax.Array, tuple[Weights, Recorded, jax.Array]]:
    apart = _Apart(model, model.dtype)
    names = "norm", "embed_tokens" if model.lm_head is None else "lm_head"

    def forward(weights: Weights, nudges: Recorded, x: jax.Array) -> jax.Array:
        return loss(apart.holding(weights).head(x, tap=Nudges(nudges)), ids, tokens)

    weights = {path: value for path, value in apart.weights.items() if path[0] in names}
    nudges = _zeros(lambda taps: model.head(x, tap=taps))
    return jax.value_and_grad(forward, argnums=(0, 1, 2))(weights, nudges, x)


@partial(jax.jit, static_argnames=("backend", "dtype", "sharding"))
def _layer_gradients(
    held: Llama | DecoderLayer,
    index: jax.Array | int,
    x: jax.Array,
    cos_sin: Rotation,
    mask: Visible,
    pulled: jax.Array,
    backend: Backend,
    dtype: np.dtype,
    sharding: ModelSharding | None,
) -> tuple[Weights, Recorded, jax.Array]:
    apart = _Apart(layer := layer_of(held, index), dtype)

    def forward(weights: Weights, nudges: Recorded, x: jax.Array) -> jax.Array:
        tap = placed(Nudges(nudges), sharding)
        return apart.holding(weights)(x, cos_sin, mask, None, index, backend, tap)[0]

    nudges = _zeros(lambda taps: layer(x, cos_sin, mask, None, index, backend, taps))
    _, pull = jax.vjp(forward, apart.weights, nudges, x)
    return pull(pulled)


@jax.jit
def _embedding_gradient(model: Llama, ids: jax.Array, pulled: jax.Array) -> jax.Array:
    apart = _Apart(model.embed_tokens, model.dtype)
    _, pull = jax.vjp(lambda weights: apart.holding(weights)(ids, model.dtype), apart.weights)
    return pull(pulled)[0][("weight",)]


@partial(jax.jit, static_argnames=("loss", "tap"))
def _gradients(
    model: Llama, ids: jax.Array, mask: BoundMask, tokens: Tokens, loss: Loss, tap: Tapper
) -> tuple[jax.Array, Weights]:
    apart = _Apart(model, model.dtype)

    def forward(weights: Weights) -> jax.Array:
        logits, _ = apart.holding(weights)(ids, positions=tokens.positions, mask=mask, tap=tap)
        return loss(logits, ids, tokens)

    return jax.value_and_grad(forward)(apart.weights)
