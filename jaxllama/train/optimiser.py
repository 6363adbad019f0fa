"""AdamW by optax: clipping, decay of matrices, and a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllama.train.config import OptimiserSettings


def schedule(settings: OptimiserSettings, steps: int) -> optax.Schedule:
    """Return the learning rate of each step, from 0.

    Args:
        settings: peak, warm-up, and what follows.
        steps: of the whole training.
    """
    peak, rest = settings.learning_rate, max(steps - settings.warmup - 1, 1)
    after: optax.Schedule = optax.constant_schedule(peak)
    if settings.schedule == "linear":
        after = optax.linear_schedule(peak, peak * settings.final, rest)
    elif settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, settings.final)
    joined = after
    if settings.warmup:
        # The first step moves already: by 1 / warmup of the peak.
        start = peak / settings.warmup
        rising = optax.linear_schedule(start, peak, max(settings.warmup - 1, 1))
        joined = optax.join_schedules([rising, after], [settings.warmup])

    def rate(step: Any) -> Any:
        # Of a whole number optax makes a rate in float32, where there is float64 too.
        with jax.numpy_dtype_promotion("standard"):
            return joined(jnp.asarray(step, jnp.result_type(float)))

    return rate


def make_optimiser(settings: OptimiserSettings, steps: int) -> optax.GradientTransformation:
    """Return what turns gradients by name into updates.

    Args:
        settings: of AdamW.
        steps: of the whole training.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """
    parts = [] if settings.clip is None else [optax.clip_by_global_norm(settings.clip)]
    parts.append(optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps))
    if settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay, _decayed))
    parts.append(optax.scale_by_learning_rate(schedule(settings, steps)))
    return optax.chain(*parts)


def _decayed(weights: Mapping[str, jax.Array]) -> dict[str, bool]:
    """Return which weights shrink; a stack of norms' weights looks like a matrix."""
    return {name: "norm" not in name.split(".")[-2] for name in weights}
