"""The early warning: figures of every n-th step held to thresholds, and what is done then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllama.sharding.hosts import host_array
from jaxllama.train.config import ACTIONS, MitigationSettings, MonitorSettings
from jaxllama.train.step import (
    NO_MITIGATION,
    Batch,
    StepFigures,
    TrainState,
    graded_step,
    skipped,
    updated,
)
from jaxllama.train.watch.figures import WatchedFigures, watched_figures
from jaxllama.train.weights import Weights, holding

# Losses that a new one is held to, and how many there must be.
_HISTORY, _LEAST = 100, 20
_ABOVE, _BELOW = "above", "below"
# Share of its first watched value below which a head's entropy has fallen.
_FALL = 0.1


@dataclass(frozen=True)
class HealthWarning:
    """A figure beyond its threshold.

    Attributes:
        step: from 1.
        figure: which, as in `MonitorSettings`.
        where: layer and head, or the kind of weight.
        value: of the figure.
        side: `above` or `below` the threshold.
        threshold: which it is.
        action: what was done: `warn`, `clip`, `skip`, `lower` or `stop`.
    """

    step: int
    figure: str
    where: str
    value: float
    side: str
    threshold: float
    action: str

    def __str__(self) -> str:
        done = "" if self.action == "warn" else f"; {ACTIONS[self.action]}"
        return (
            f"step {self.step}: {self.figure} {self.value:.4g} in {self.where}, {self.side} "
            f"{self.threshold:g}{done}"
        )


def shortly(found: Iterable[HealthWarning]) -> list[str]:
    """Return a line a figure: the worst place, and of how many more it is said."""
    kinds: dict[tuple[str, str], list[HealthWarning]] = {}
    for one in found:
        kinds.setdefault((one.figure, one.side), []).append(one)
    lines = []
    for (_, side), alike in kinds.items():
        worst = (max if side == _ABOVE else min)(alike, key=lambda one: one.value)
        more = f"; and {len(alike) - 1} more such" if len(alike) > 1 else ""
        lines.append(f"{worst}{more}")
    return lines


class HealthMonitor:
    """Watches a training.

    Args:
        settings: thresholds, and what is done beyond which.
        graph: of the model.
        optimiser: of the training.
        z_loss: likewise.
        mitigation: likewise.

    Attributes:
        warnings: all so far.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        graph: Any,
        optimiser: optax.GradientTransformation,
        z_loss: float = 0.0,
        mitigation: MitigationSettings = NO_MITIGATION,
    ) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._watched = jax.jit(partial(_watched_step, graph, optimiser, z_loss, mitigation))
        self._cut: Callable[..., TrainState] = jax.jit(partial(_cut_step, optimiser))
        self.warnings: list[HealthWarning] = []
        self._first_entropy: np.ndarray | None = None

    def is_due(self, step: int) -> bool:
        """Return whether a step, counted from 1, is watched.

        Before the first multiple of `every` these are the powers of 2: a rate that is far too high
        has done its harm within a few steps.
        """
        every = self._settings.every
        return every > 0 and (step % every == 0 or (step < every and step.bit_count() == 1))

    def forget(self) -> None:
        """Begin anew: losses and warnings so far are of another run."""
        self._losses.clear()
        self.warnings, self._first_entropy = [], None

    def memory(self) -> dict[str, Any]:
        """Return what later steps are held to, as JSON has it."""
        begun = None if self._first_entropy is None else self._first_entropy.tolist()
        return {"losses": [*self._losses], "entropy": begun}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on with what `memory` gave."""
        self.forget()
        self._losses.extend(memory.get("losses", ()))
        begun = memory.get("entropy")
        self._first_entropy = None if begun is None else np.asarray(begun, np.float64)

    def note_loss(self, loss: float) -> None:
        """Remember the loss of a step."""
        self._losses.append(loss)

    def step(
        self, state: TrainState, frozen: Weights, batch: Batch
    ) -> tuple[TrainState, StepFigures, WatchedFigures, list[HealthWarning]]:
        """Make a step and watch it; what is done beyond a threshold is done in this step.

        Args:
            state: before; it stays as it is.
            frozen: weights that are not trained.
            batch: in parts.

        Returns:
            The state after, the step's usual figures, what was watched, and what was found. Where
            that is to stop the run, or the step is not finite, the state is the one before, and
            nothing else is done.
        """
        after, figures, watched, asked = self._watched(state, frozen, batch)
        shown: WatchedFigures = jax.tree.map(host_array, watched)
        found = [*self._beyond(int(state.step) + 1, shown, float(figures.loss))]
        self.warnings += found
        actions = {one.action for one in found}
        if "stop" in actions or not figures.finite:
            return state, figures, shown, found
        if "skip" in actions:
            after = skipped(state)
        elif "clip" in actions:
            after = self._cut(state, *asked, figures.gradient, self._settings.clip_norm)
        if "lower" in actions:
            after = after._replace(rate=after.rate * jnp.float32(self._settings.lower_by))
        return after, figures, shown, found

    def _beyond(self, step: int, shown: WatchedFigures, loss: float) -> Iterator[HealthWarning]:
        settings = self._settings

        def beyond(figure: str, values: Any, side: str, limit: float, name: str = "") -> Any:
            array = np.asarray(values, np.float64)
            wrong = array > limit if side == _ABOVE else array < limit
            for at in np.argwhere(wrong):
                words = [f"{w} {i}" for w, i in zip(("layer", "head"), at, strict=False)]
                where = ", ".join([*words, *([name] if name else [])])
                action = settings.action_of(figure)
                value = float(array[tuple(at)])
                yield HealthWarning(step, figure, where, value, side, limit, action)

        yield from beyond("max_logit", shown.max_logit, _ABOVE, settings.max_logit)
        # Collapse is a fall: a head that rests on one key from the start, a sink, is none.
        if self._first_entropy is None:
            self._first_entropy = np.asarray(shown.entropy, np.float64)
        fallen = np.where(shown.entropy < _FALL * self._first_entropy, shown.entropy, np.nan)
        yield from beyond("entropy", fallen, _BELOW, settings.entropy)
        yield from beyond("residual", shown.residual, _BELOW, settings.residual)
        for name, norms in shown.gradient.items():
            if np.ndim(norms) and (middle := float(np.median(norms))) > 0:
                ratio = norms / middle
                yield from beyond("gradient", ratio, _ABOVE, settings.gradient, name)
                yield from beyond("gradient", ratio, _BELOW, 1 / settings.gradient, name)
        for name, ratios in shown.update_ratio.items():
            yield from beyond("update_ratio", ratios, _ABOVE, settings.update_ratio, name)
        if len(self._losses) >= _LEAST:
            spread = max(float(np.std(self._losses)), 1e-12)
            away = (loss - float(np.mean(self._losses))) / spread
            said = f"the loss {loss:.4g}, in standard deviations"
            yield from beyond("loss_spike", away, _ABOVE, settings.loss_spike, said)


def _watched_step(
    graph: Any,
    optimiser: optax.GradientTransformation,
    z_loss: float,
    mitigation: MitigationSettings,
    state: TrainState,
    frozen: Weights,
    batch: Batch,
) -> tuple[TrainState, StepFigures, WatchedFigures, tuple[Weights, Weights]]:
    after, figures, made = graded_step(graph, optimiser, z_loss, mitigation, state, frozen, batch)
    first = Batch(*(part[0] for part in batch))
    model = holding(graph, state.weights | frozen)
    watched = watched_figures(
        model, first, made.gradients, state.weights, after.weights, frozen, mitigation
    )
    return after, figures, watched, (made.gradients, made.factors)


def _cut_step(
    optimiser: optax.GradientTransformation,
    state: TrainState,
    gradients: Weights,
    factors: Weights,
    norm: jax.Array,
    most: jax.Array | float,
) -> TrainState:
    """Return the state after a step on gradients cut down to a norm."""
    less = jnp.minimum(jnp.asarray(most, norm.dtype) / norm, jnp.ones_like(norm))
    cut = {name: g * less.astype(g.dtype) for name, g in gradients.items()}
    return updated(optimiser, state, cut, factors)
