"""Several steps of the optimiser beside PyTorch's, on given gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxllama.train.config import OptimiserSettings
from jaxllama.train.optimiser import make_optimiser, schedule

SHAPES = {"layers.mlp.up_proj.weight": (3, 4, 5), "norm.weight": (7,)}
STEPS = 9


def ours(settings: OptimiserSettings, gradients: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    weights = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    optimiser = make_optimiser(settings, STEPS)
    state = optimiser.init(weights)
    for one in gradients:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(
                {name: jnp.asarray(g) for name, g in one.items()}, state, weights
            )
        weights = optax.apply_updates(weights, updates)
    return [np.asarray(weight) for weight in weights.values()]


def theirs(
    settings: OptimiserSettings, gradients: list[dict[str, np.ndarray]], rates: list[float]
) -> list[np.ndarray]:
    weights = [torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in SHAPES.values()]
    decays = (settings.weight_decay, 0.0)
    optimiser = torch.optim.AdamW(
        [{"params": [w], "weight_decay": d} for w, d in zip(weights, decays, strict=True)],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    for one, rate in zip(gradients, rates, strict=True):
        for weight, gradient in zip(weights, one.values(), strict=True):
            weight.grad = torch.from_numpy(gradient.copy())
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    return [weight.detach().numpy() for weight in weights]


@pytest.fixture(scope="module")
def gradients() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {name: rng.normal(size=shape) * scale for name, shape in SHAPES.items()}
        for scale in rng.uniform(0.01, 3, STEPS)
    ]


# PyTorch divides by the norm and 1e-6, optax by the norm.
@pytest.mark.parametrize(
    ("changed", "apart"),
    [({}, 1e-13), ({"beta1": 0.5, "beta2": 0.9}, 1e-13), ({"clip": 1.0}, 1e-6)],
)
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_steps_are_pytorchs(
    kind: str, changed: dict[str, Any], apart: float, gradients: list[dict[str, np.ndarray]]
) -> None:
    settings = OptimiserSettings(
        learning_rate=0.02, schedule=kind, warmup=3, final=0.1, weight_decay=0.3, **changed
    )
    with np.errstate(all="raise"):
        rates = [float(schedule(settings, STEPS)(step)) for step in range(STEPS)]
    expected = theirs(settings, gradients, rates)
    for a, b in zip(ours(settings, gradients), expected, strict=True):
        assert np.abs(a - b).max() <= apart
    unclipped = theirs(OptimiserSettings(learning_rate=0.02, weight_decay=0.3), gradients, rates)
    if changed:
        assert np.abs(unclipped[0] - expected[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 2, 2, 2, 2, 2]),
        ("linear", [1, 2, 2, 1.5, 1, 0.5]),
        ("cosine", [1, 2, 2, 0.5 + 1.5 * 0.75, 0.5 + 1.5 * 0.25, 0.5]),
    ],
)
def test_the_rate_rises_and_ends_where_it_is_told(kind: str, expected: list[float]) -> None:
    settings = OptimiserSettings(learning_rate=2.0, schedule=kind, warmup=2, final=0.25)
    rates = [float(schedule(settings, 6)(step)) for step in range(6)]
    assert rates == pytest.approx(expected)
