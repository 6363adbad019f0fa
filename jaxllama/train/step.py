"""One step: the loss of a batch, its gradients, the weights after it.

Shapes: A parts of a batch, B rows of a part, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxllama.loss import successors, token_losses
from jaxllama.masks import BoundMask, Tokens, causal, padding, segments
from jaxllama.model import Llama
from jaxllama.taps import Tapper, untapped
from jaxllama.train.config import MitigationSettings
from jaxllama.train.mitigation import Mitigated, clip_factors, dropout_key, mitigated
from jaxllama.train.weights import Weights, holding

Graph = Any
NO_MITIGATION = MitigationSettings()


class Batch(NamedTuple):
    """Rows of a step, in the parts that it is worked through in; see `TokenRows`."""

    tokens: Int[Array, "*A B T"]
    positions: Int[Array, "*A B T"]
    segments: Int[Array, "*A B T"]
    valid: Bool[Array, "*A B T"]

    def described(self) -> Tokens:
        """Return what masks are made of."""
        return Tokens(self.positions, self.valid, self.segments)

    def mask(self) -> BoundMask:
        """Return who sees whom: earlier tokens of the same document."""
        tokens = self.described()
        return (causal() & padding() & segments()).bind(tokens, tokens)

    def shown(self) -> Bool[Array, "B T T"]:
        """Return which keys tokens see that are no pads."""
        return self.mask().to_bool() & self.valid[:, :, None]


class TrainState(NamedTuple):
    """All that changes from step to step.

    Attributes:
        step: how many have been made.
        weights: what is trained, by dotted path.
        optimiser: optax's.
        rate: factor on the learning rate.
    """

    step: Int[Array, ""]
    weights: Weights
    optimiser: Any
    rate: Float[Array, ""]


class StepFigures(NamedTuple):
    """What a step is known by.

    Attributes:
        loss: mean over the predicted tokens, in nats.
        gradient: norm of all gradients together, before clipping.
        tokens: how many were predicted.
        finite: whether both are; if not, no weight has moved.
    """

    loss: Float[Array, ""]
    gradient: Float[Array, ""]
    tokens: Int[Array, ""]
    finite: Bool[Array, ""]


class SummedLoss(NamedTuple):
    """Sums over the predicted tokens of a part of a batch.

    Attributes:
        loss: cross-entropy, in nats.
        normaliser: squares of the logarithm of the softmax's denominator.
        tokens: how many these are.
    """

    loss: Float[Array, ""]
    normaliser: Float[Array, ""]
    tokens: Int[Array, ""]

    def minimised(self, z_loss: float) -> Float[Array, ""]:
        """Return what gradients are of; see `loss_and_gradients`."""
        return self.loss + z_loss * self.normaliser if z_loss else self.loss


class Graded(NamedTuple):
    """What a batch asks of the weights.

    Attributes:
        loss: mean over the predicted tokens, in nats.
        tokens: how many these are.
        gradients: of what is trained.
        factors: on what is trained, after the optimiser's step; see `clip_factors`.
    """

    loss: Float[Array, ""]
    tokens: Int[Array, ""]
    gradients: Weights
    factors: Weights


def summed_loss(model: Llama, batch: Batch, *, tap: Tapper = untapped) -> SummedLoss:
    """Return the sums of a part's losses."""
    logits, _ = model(batch.tokens, positions=batch.positions, mask=batch.mask(), tap=tap)
    targets, counted = successors(batch.tokens, valid=batch.valid, segments=batch.segments)
    squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return SummedLoss(
        loss=jnp.where(counted, token_losses(logits, targets), 0).sum(),
        normaliser=jnp.where(counted, squares, 0).sum(),
        tokens=counted.sum(dtype=jnp.int32),
    )


def loss_and_gradients(
    graph: Graph,
    weights: Weights,
    frozen: Weights,
    batch: Batch,
    z_loss: float = 0.0,
    mitigation: MitigationSettings = NO_MITIGATION,
    step: Int[Array, ""] | int = 0,
) -> Graded:
    """Return a batch's mean loss, how many tokens it is of, its gradients, and QK-clip's factors.

    With `z_loss`, gradients are of the loss and so many times the mean square of the logarithm of
    the softmax's denominator, which keeps that near 0; the loss that is told is without.

    Parts are summed and divided by the tokens of all: a mean of means would weigh a token by how
    many pads its part has. What is dropped is another in each part and at each `step`, which
    counts those made before; see `mitigated`.

    Source: of z-loss, Chowdhery et al. 2022 (arXiv 2204.02311), section 5.
    """

    def part(weights: Weights, one: Batch, number: Any) -> tuple[Array, Any]:
        model = holding(graph, weights | frozen)
        key = dropout_key(mitigation, step, number) if mitigation.drops else None
        shown = one.shown() if mitigation.qk_clip is not None else None
        tap = mitigated(mitigation, model, weights, key=key, shown=shown)
        sums = summed_loss(model, one, tap=tap)
        largest = tap.largest if isinstance(tap, Mitigated) else None
        return sums.minimised(z_loss), ((sums.loss, sums.tokens), largest)

    graded = jax.value_and_grad(part, has_aux=True)
    first = Batch(*(x[0] for x in batch))
    if batch.tokens.shape[0] == 1:
        (_, ((total, count), largest)), gradients = graded(weights, first, 0)
    else:

        def add(sums: Any, given: tuple[Batch, Array]) -> tuple[Any, Any]:
            (_, (found, largest)), slopes = graded(weights, *given)
            return jax.tree.map(jnp.add, sums, (found, slopes)), largest

        (_, (found, _)), slopes = jax.eval_shape(graded, weights, first, 0)
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (found, slopes))
        numbered = batch, jnp.arange(batch.tokens.shape[0])
        ((total, count), gradients), largest = jax.lax.scan(add, start, numbered)
        largest = None if largest is None else jnp.nanmax(largest, axis=0)
    tokens = jnp.maximum(count, 1)
    mean = jax.tree.map(lambda g: g / tokens.astype(g.dtype), gradients)
    factors = clip_factors(mitigation, holding(graph, weights | frozen).config, largest)
    return Graded(total / tokens.astype(total.dtype), count, mean, factors)


def updated(
    optimiser: optax.GradientTransformation, state: TrainState, gradients: Weights, factors: Weights
) -> TrainState:
    """Return the state after the optimiser's step, and after factors on some of the weights."""
    # optax adds floats of Python's to counters, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, kept = optimiser.update(gradients, state.optimiser, state.weights)
    moved = {
        name: weight + (state.rate.astype(weight.dtype) * updates[name].astype(weight.dtype))
        for name, weight in state.weights.items()
    }
    for name, factor in factors.items():
        moved[name] *= factor.astype(moved[name].dtype)
    return TrainState(state.step + 1, moved, kept, state.rate)


def skipped(state: TrainState) -> TrainState:
    """Return the state after a step that moves nothing; the schedule's next rate is the next."""

    def of_schedule(path: Any, _: Any) -> bool:
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey) and (
            path[-1].tuple_name == optax.ScaleByScheduleState.__name__
        )

    # Adam's own count stays: it says of how many gradients the means are.
    count = optax.tree.get(state.optimiser, "count", filtering=of_schedule)
    kept = optax.tree.set(state.optimiser, of_schedule, count=count + 1)
    return state._replace(step=state.step + 1, optimiser=kept)


def train_step(
    graph: Graph,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    frozen: Weights,
    batch: Batch,
    z_loss: float = 0.0,
    mitigation: MitigationSettings = NO_MITIGATION,
) -> tuple[TrainState, StepFigures]:
    """Return the state after a batch; where loss or gradients are not finite, as it was.

    Args:
        graph: of the model, as `nnx.split` gives it.
        optimiser: of `make_optimiser`.
        state: before.
        frozen: weights that are not trained.
        batch: in parts.
        z_loss: see `loss_and_gradients`.
        mitigation: see `jaxllama.train.mitigation`.
    """
    return graded_step(graph, optimiser, z_loss, mitigation, state, frozen, batch)[:2]


def graded_step(
    graph: Graph,
    optimiser: optax.GradientTransformation,
    z_loss: float,
    mitigation: MitigationSettings,
    state: TrainState,
    frozen: Weights,
    batch: Batch,
) -> tuple[TrainState, StepFigures, Graded]:
    """Return what `train_step` does, and what it was made by."""
    made = loss_and_gradients(graph, state.weights, frozen, batch, z_loss, mitigation, state.step)
    norm = optax.tree.norm(made.gradients)
    finite = jnp.isfinite(made.loss) & jnp.isfinite(norm)
    after = updated(optimiser, state, made.gradients, made.factors)
    chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
    return chosen, StepFigures(made.loss, norm, made.tokens, finite), made


def initial_state(
    weights: Weights, optimiser: optax.GradientTransformation, place: Callable[[Any], Any]
) -> TrainState:
    """Return the state before the first step.

    Args:
        weights: to be trained, where they lie.
        optimiser: of `make_optimiser`.
        place: puts a number where all devices have it.
    """
    everywhere = place(0).sharding
    # Means lie where their weights do; the compiler would put zeros on one device.
    places = optax.tree_map_params(
        optimiser,
        lambda _, weight: weight.sharding,
        jax.eval_shape(optimiser.init, weights),
        weights,
        transform_non_params=lambda _: everywhere,
    )
    made = jax.jit(optimiser.init, out_shardings=places)(weights)
    return TrainState(place(np.int32(0)), weights, made, place(np.float32(1)))
