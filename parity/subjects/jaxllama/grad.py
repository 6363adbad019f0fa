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

from jaxllama.loss import next_token_loss
from jaxllama.masks import BoundMask, Tokens
from jaxllama.model import Llama
from jaxllama.taps import Taps, Untapped
from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.jaxllama.run import Recorded, Rotation, Visible, dense, mask_spec, tokens_of

# A module's weights by where it keeps them, and the loss of logits and tokens.
Weights = dict[tuple[Any, ...], jax.Array]
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
    tokens, ids = tokens_of(inputs, slice(None)), jnp.asarray(inputs.tokens)
    mask = dense(mask_spec(inputs).bind(tokens, tokens, empty_row="zero"))
    layers = model.config.num_hidden_layers
    x, cos_sin = _embedded(model, ids, tokens.positions, mask)
    streams = [x]
    for index in range(layers):
        streams.append(_layer(model, index, streams[-1], cos_sin, mask))

    value, (weights, taps, pulled) = _head_gradients(model, streams.pop(), ids, tokens, loss)
    tied = weights.pop(("embed_tokens", "weight"), None)
    yield {"loss": np.asarray(value)} | _named(weights) | _prefixed("grad.", taps)
    for index in reversed(range(layers)):
        weights, taps, pulled = _layer_gradients(model, index, streams.pop(), cos_sin, mask, pulled)
        taps["input"] = pulled  # the tap's own would leave out what lies before the tap
        yield _named(weights, index) | _prefixed(f"grad.layers.{index}.", taps)
    gradient = _embedding_gradient(model, ids, pulled)
    if tied is not None:
        gradient += tied
    yield {"grad.embed": np.asarray(pulled)} | _named({("embed_tokens", "weight"): gradient})


def whole(model: Llama, inputs: Inputs, loss: Loss = loss_of) -> Iterator[Arrays]:
    """Differentiate the scanned model in one compiled program, as training does.

    Yields:
        The loss and the parameters' gradients, in the stages of `by_stage`.
    """
    tokens, ids = tokens_of(inputs, slice(None)), jnp.asarray(inputs.tokens)
    mask = mask_spec(inputs).bind(tokens, tokens, empty_row="zero")
    value, weights = _gradients(model, ids, mask, tokens, loss)
    stacked = {path[1:]: weights.pop(path) for path in list(weights) if path[0] == "layers"}
    embedding = {path: weights.pop(path) for path in list(weights) if path[0] == "embed_tokens"}
    yield {"loss": np.asarray(value)} | _named(weights)
    held = {path: np.asarray(value) for path, value in stacked.items()}
    for index in reversed(range(model.config.num_hidden_layers)):
        yield _named({path: value[index] for path, value in held.items()}, index)
    yield _named(embedding)


def _named(weights: Mapping[tuple[Any, ...], jax.Array | np.ndarray], layer: int = 0) -> Arrays:
    """Return gradients under the parameters' canonical names."""
    top = {"embed_tokens": "model.", "norm": "model.", "lm_head": ""}
    return {
        f"grad.{top.get(path[0], f'model.layers.{layer}.')}{'.'.join(path)}": np.asarray(value)
        for path, value in weights.items()
    }


def _prefixed(prefix: str, values: Recorded) -> Arrays:
    return {prefix + name: np.asarray(value) for name, value in values.items()}


class Nudges(Untapped):
    """Adds to every tap what is given for it: the loss's gradient in that is the tap's own."""

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
    model: Llama, ids: jax.Array, positions: jax.Array, mask: Visible
) -> tuple[jax.Array, Rotation]:
    return model.embed(ids, positions, mask)[:2]


@jax.jit
def _layer(
    model: Llama, index: jax.Array | int, x: jax.Array, cos_sin: Rotation, mask: Visible
) -> jax.Array:
    return model.layer(index)(x, cos_sin, mask, None, index, model.backend)[0]


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


@jax.jit
def _layer_gradients(
    model: Llama,
    index: jax.Array | int,
    x: jax.Array,
    cos_sin: Rotation,
    mask: Visible,
    pulled: jax.Array,
) -> tuple[Weights, Recorded, jax.Array]:
    apart = _Apart(layer := model.layer(index), model.dtype)

    def forward(weights: Weights, nudges: Recorded, x: jax.Array) -> jax.Array:
        tap = Nudges(nudges)
        return apart.holding(weights)(x, cos_sin, mask, None, index, model.backend, tap)[0]

    nudges = _zeros(lambda taps: layer(x, cos_sin, mask, None, index, model.backend, taps))
    _, pull = jax.vjp(forward, apart.weights, nudges, x)
    return pull(pulled)


@jax.jit
def _embedding_gradient(model: Llama, ids: jax.Array, pulled: jax.Array) -> jax.Array:
    apart = _Apart(model.embed_tokens, model.dtype)
    _, pull = jax.vjp(lambda weights: apart.holding(weights)(ids, model.dtype), apart.weights)
    return pull(pulled)[0][("weight",)]


@partial(jax.jit, static_argnames=("loss",))
def _gradients(
    model: Llama, ids: jax.Array, mask: BoundMask, tokens: Tokens, loss: Loss
) -> tuple[jax.Array, Weights]:
    apart = _Apart(model, model.dtype)

    def forward(weights: Weights) -> jax.Array:
        logits, _ = apart.holding(weights)(ids, positions=tokens.positions, mask=mask)
        return loss(logits, ids, tokens)

    return jax.value_and_grad(forward)(apart.weights)
