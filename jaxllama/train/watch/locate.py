"""Where NaN and infinity begin: a step run again, every intermediate looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxllama.sharding.hosts import host_array
from jaxllama.taps import LAYER_TAPS, Tapper, Taps, Untapped, Values
from jaxllama.train.config import MitigationSettings
from jaxllama.train.mitigation import dropout_key, mitigated
from jaxllama.train.step import NO_MITIGATION, Batch, SummedLoss, summed_loss
from jaxllama.train.weights import Weights, holding


class Shifted(Untapped):
    """Adds to every tap what is given for it: the loss's gradient in that is the tap's own.

    Args:
        given: by name, of what is no layer's; inside a layer by its short names.
        layered: by short name, of all layers, one array each.
    """

    watched = True

    def __init__(self, given: Mapping[str, Array], layered: Mapping[str, Array]) -> None:
        self._given, self._layered = given, dict(layered)

    def __call__(self, name: str, value: Array) -> Array:
        return value + self._given[name] if name in self._given else value

    def inner(self, forced: Mapping[str, Array]) -> Tapper:
        return Shifted(forced, {})

    def forced_layers(self) -> dict[str, Array]:
        return self._layered


# The sums of a part of a batch, of weights, seen by a tap.
Summed = Callable[[Weights, Batch, Tapper], SummedLoss]


def locate_nonfinite(
    graph: Any,
    weights: Weights,
    batch: Batch,
    mitigation: MitigationSettings = NO_MITIGATION,
    step: int = 0,
    z_loss: float = 0.0,
    trained: Collection[str] | None = None,
) -> str:
    """Say where the first number that is not finite is, in the order of computing.

    Args:
        graph: of a stacked model, as `nnx.split` gives it.
        weights: all of its arrays.
        batch: in parts; each is looked at until one has such a number.
        mitigation: with which the step was taken.
        step: how many were made before it.
        z_loss: with which it was taken.
        trained: which of the weights it moves; all if None.
    """

    def summed(number: int, weights: Weights, part: Batch, tap: Tapper) -> SummedLoss:
        model, key = holding(graph, weights), dropout_key(mitigation, step, number)
        through = mitigated(mitigation, model, weights, key=key, tap=tap)
        return summed_loss(model, part, tap=through)

    for name, weight in weights.items():
        finite = host_array(_finite_by_layer(name, weight))
        if not finite.all():
            where = f" of layer {int(np.argmin(finite))}" if finite.ndim else ""
            return f"forward, first in the weights: {name}{where}"
    for number in range(batch.tokens.shape[0]):
        part = Batch(*(x[number] for x in batch))
        run = partial(summed, number)
        found = {n: bool(host_array(x)) for n, x in _forward(run, weights, part, z_loss).items()}
        layers = sum(name.endswith(".output") for name in found)
        order = _in_order(found, layers)
        if bad := [name for name in order if not found[name]]:
            return f"forward, first at {bad[0]}"
        looked_at, sizes = _backward(run, weights, part, layers, z_loss, trained or weights)
        back = {n: host_array(x) for n, x in looked_at.items()}
        for name in reversed(order):
            if name in back and not back[name].all():
                return f"backward, first in the gradient of {name}"
        for name, finite in back.items():
            if not finite.all():
                return f"backward, in the gradient of {name}"
        if not np.isfinite(host_array(sizes.norm)):
            largest = {n: host_array(x) for n, x in sizes.largest.items()}
            name = max(largest, key=lambda n: float(largest[n].max()))
            where = f" of layer {int(largest[name].argmax())}" if largest[name].ndim else ""
            return (
                "backward, in their squares: the gradients are finite, the sum of their squares is "
                f"not; the largest, {float(largest[name].max()):.2g}, is of {name}{where}"
            )
    return "nowhere, where every intermediate is looked at; the compiled whole rounds otherwise"


def _in_order(found: Mapping[str, Any], layers: int) -> list[str]:
    """Return taps in the order of computing."""
    named = [f"layers.{i}.{name}" for i in range(layers) for name in LAYER_TAPS]
    return [n for n in ("embed", *named, "norm", "logits", "loss", "z_loss") if n in found]


def _inner_axes(name: str, weight: Array) -> tuple[int, ...]:
    """Return all axes but that of layers, of a stack of them."""
    return tuple(range(int(name.startswith("layers.")), weight.ndim))


def _finite_by_layer(name: str, weight: Array) -> Array:
    return jnp.isfinite(weight).all(axis=_inner_axes(name, weight))


def _forward(run: Summed, weights: Weights, part: Batch, z_loss: float) -> Values:
    """Return whether each tap is finite."""

    @jax.jit
    def looked_at(weights: Weights, part: Batch) -> Values:
        taps = Taps()
        sums = run(weights, part, taps)
        recorded = taps.recorded() | {"loss": sums.loss}
        if z_loss:
            recorded["z_loss"] = sums.normaliser
        return {name: jnp.isfinite(value).all() for name, value in recorded.items()}

    return looked_at(weights, part)


class _Sizes(NamedTuple):
    """The norm of a part's gradients as a step takes it, and each one's largest, by layer."""

    norm: Array
    largest: Values


def _backward(
    run: Summed, weights: Weights, part: Batch, layers: int, z_loss: float, trained: Collection[str]
) -> tuple[Values, _Sizes]:
    """Return whether what is minimised has a finite gradient, by tap and by weight and layer."""

    def recorded(weights: Weights, part: Batch) -> Values:
        taps = Taps()
        run(weights, part, taps)
        return taps.recorded()

    shapes = {
        name: one
        for name, one in jax.eval_shape(recorded, weights, part).items()
        if jnp.issubdtype(one.dtype, jnp.floating) and name != "rope.inv_freq"
    }

    @jax.jit
    def looked_at(weights: Weights, part: Batch) -> tuple[Values, _Sizes]:
        outer = {
            name: jnp.zeros(one.shape, one.dtype)
            for name, one in shapes.items()
            if not name.startswith("layers.")
        }
        layered = {
            name: jnp.zeros((layers, *one.shape), one.dtype)
            for name in LAYER_TAPS
            if (one := shapes.get(f"layers.0.{name}")) is not None
        }

        def total(weights: Weights, outer: Values, layered: Values) -> tuple[Array, Array]:
            sums = run(weights, part, Shifted(outer, layered))
            return sums.minimised(z_loss), sums.tokens

        graded = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
        (slopes, outer, layered), tokens = graded(weights, outer, layered)
        every = {
            f"layers.{i}.{name}": value[i] for name, value in layered.items() for i in range(layers)
        }
        found = {name: jnp.isfinite(value).all() for name, value in (outer | every).items()}
        found |= {name: _finite_by_layer(name, slope) for name, slope in slopes.items()}
        count = jnp.maximum(tokens, 1)
        mean = {name: slopes[name] / count.astype(slopes[name].dtype) for name in trained}
        largest = {n: jnp.abs(slope).max(axis=_inner_axes(n, slope)) for n, slope in mean.items()}
        return found, _Sizes(optax.tree.norm(mean), largest)

    return looked_at(weights, part)
