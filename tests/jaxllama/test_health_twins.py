"""Every figure that parity takes of a layer in NumPy is the same inside a compiled step."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import attention_maps as known
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planting import planted

from jaxllama.health import (
    GradientNorms,
    MapFigures,
    StreamFigures,
    gradient_norms,
    map_figures,
    rollout,
    stream_figures,
)
from jaxllama.health import maps as in_jax
from parity.health.metrics import attention as in_numpy
from parity.health.metrics.attention import HeadFigures, Rollout, head_figures
from parity.health.metrics.gradients import GradientFigures, gradient_figures, over_median
from parity.health.metrics.states import StateFigures, state_figures

B, N, K, T, D, H, L = 3, 5, 2, 23, 6, 4, 3
LIMITS = {"float64": 1e-11, "float32": 3e-5, "bfloat16": 3e-5}
# Smaller than the maps at hand, or what they leave out would not be seen.
SMALL = {"MOST_SINGULAR": 7, "MOST_COMPARED": 6, "SINK_TOKENS": 5}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        assert getattr(in_jax, name) == getattr(in_numpy, name) > T
        monkeypatch.setattr(in_jax, name, value)
        monkeypatch.setattr(in_numpy, name, value)
    assert (in_jax.LAZY_SHARE, in_jax.PEAK_REST) == (in_numpy.LAZY_SHARE, in_numpy.PEAK_REST)


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, masks, scores and validity: a full row, one padded left, one of pads."""
    valid = np.arange(T) >= np.array([[0], [4], [T]])
    mask = known.causal(T) & valid[:, :, None] & valid[:, None, :]
    scores = np.random.default_rng(1).standard_normal((B, N, T, T)) * 3
    weights = np.stack([known.soft(N, T, seed, 4.0) for seed in range(B)])
    weights = np.where(mask[:, None], weights, 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-9)
    weights[0, 1], weights[0, 2], weights[0, 3] = (
        known.previous(T),
        known.column(T, 2),
        known.uniform(T),
    )
    weights[1, 4, 9, 15] = 0.03  # leaks
    weights[1, 4, 20, 2] = 0.01
    weights[1, 2, 12] *= 1.02
    return weights, mask, scores, valid


def maps_in_numpy(weights: np.ndarray, mask: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    per_row = [head_figures(w, m, s) for w, m, s in zip(weights, mask, scores, strict=True)]
    return {name: np.stack([getattr(one, name) for one in per_row]) for name in MapFigures._fields}


@pytest.mark.parametrize("dtype", LIMITS)
def test_maps(dtype: str) -> None:
    weights, mask, scores, _ = rows()
    given, logits = jnp.asarray(weights, dtype), jnp.asarray(scores, dtype)
    wanted = maps_in_numpy(np.asarray(given), mask, np.asarray(logits))
    found = jax.jit(map_figures)(given, jnp.asarray(mask), logits)
    assert wanted["leak_query"][1, 4] == 9 and wanted["row_sum_at"][1, 2] == 12
    assert len({*wanted["lazy_k"][:2].ravel()}) > 2
    rounding = wanted["row_sum"] < 1e-2 if dtype == "bfloat16" else wanted["row_sum"] < 1e-4
    for name, one in found._asdict().items():
        if name == "row_sum_at":  # where rows add up but for rounding any may be the worst
            one, wanted[name] = (np.where(rounding, 0, x) for x in (one, wanted[name]))
        np.testing.assert_allclose(
            one, wanted[name], rtol=LIMITS[dtype], atol=LIMITS[dtype], err_msg=name
        )
    bare = map_figures(given, jnp.asarray(mask))
    assert jnp.isnan(bare.max_logit).all() and bool((bare.sink == found.sink)[:2].all())


@pytest.mark.parametrize(
    ("before", "after", "figure"),
    [
        ("> 1 - PEAK_REST", "> 1 - 30 * PEAK_REST", "peaked"),
        ("jnp.arange(T)[None, None] - shown.argmax", "T - shown.argmax", "one_distance"),
        ("< first[:, None] + SINK_TOKENS", "< SINK_TOKENS", "sink"),
        ("dtype=jnp.int32) * 2 >=", "dtype=jnp.int32) * 9 >=", "column"),
        ("first = jnp.argsort(~live", "first = jnp.argsort(live", "lazy_k"),
        ("at_query * sums - shown", "at_query - shown", "reach"),
        ("0, wide))", "0, -wide).clip(0))", "leakage"),
        ("(column == first[:, None])", "(column == 0)", "column_first"),
        ("(hidden > 0).sum", "(hidden > 0.02).sum", "leaking"),
        ("leak % hidden", "leak // hidden", "leak_key"),
        ("jnp.abs(wide.sum(axis=-1) - 1)", "jnp.abs(sums - 1)", "row_sum"),
        ("evenly = step *", "evenly = 0 * step *", "nearest"),
        ("jnp.where(alone, jnp.inf, ", "jnp.where(alone, 9.0, -", "nearest_head"),
    ],
)
def test_a_fault_planted_in_the_maps_is_seen(before: str, after: str, figure: str) -> None:
    weights, mask, scores, _ = rows()
    wanted = maps_in_numpy(weights, mask, scores)[figure]
    with planted("jaxllama.health.maps", before, after):
        found = getattr(in_jax.map_figures(jnp.asarray(weights), jnp.asarray(mask)), figure)
    assert not np.allclose(found, wanted, atol=1e-4, equal_nan=True)


def test_every_figure_of_parity_has_a_twin() -> None:
    for ours, theirs, beside in (
        (MapFigures, HeadFigures, set[str]()),
        (StreamFigures, StateFigures, set[str]()),
        (GradientNorms, GradientFigures, {"over_median", "value_over_median"}),
    ):
        assert {*ours._fields} == {one.name for one in fields(theirs)} | beside


def test_one_head_alone_has_no_nearest() -> None:
    weights, mask, scores, _ = rows()
    found = map_figures(jnp.asarray(weights[:, :1]), jnp.asarray(mask), jnp.asarray(scores[:, :1]))
    assert jnp.isnan(found.nearest).all() and bool((found.nearest_head == -1).all())


def test_rollout() -> None:
    weights, mask, _, _ = rows()
    layers = np.stack([weights, weights[:, ::-1], weights**2])
    wanted = np.empty((L, B))
    for row in range(B):
        through = Rollout()
        wanted[:, row] = [through.add(layer[row], mask[row]) for layer in layers]
    found = jax.jit(rollout)(jnp.asarray(layers), jnp.asarray(mask))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert not np.allclose(found[0], found[1])


def states() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(2)
    before, after = drawn.standard_normal((2, B, T, D))
    after[0] += 4
    after[1, 11, 3] = -300
    after[1, :4] *= 50  # pads
    values = drawn.standard_normal((B, T, K, H))
    values[0, :, 1] = 1 + values[0, :1, 1]
    return before, after, values


def states_in_numpy() -> dict[str, Any]:
    (before, after, values), valid = states(), rows()[3]
    found: dict[str, list[Any]] = {name: [] for name in StreamFigures._fields}
    for row in range(2):
        real = valid[row]
        one = state_figures(before[row][real], after[row][real], values[row][real])
        for name, figures in found.items():
            value = getattr(one, name)
            figures.append(np.flatnonzero(real)[value] if name == "largest_token" else value)
    return {name: np.stack(figures) for name, figures in found.items()}


def test_states() -> None:
    wanted, valid = states_in_numpy(), jnp.asarray(rows()[3])
    found = jax.jit(stream_figures)(*map(jnp.asarray, states()), valid)
    assert wanted["largest_token"][1] == 11
    for name, one in found._asdict().items():
        np.testing.assert_allclose(one[:2], wanted[name], rtol=1e-11, atol=1e-11, err_msg=name)
        assert bool((jnp.isnan(one[2]) | (one[2] == -1)).all())  # a row of pads


@pytest.mark.parametrize(
    ("before", "after", "figure"),
    [
        ("sizes = jnp.where(valid, _norm(states), 0)", "sizes = _norm(states)", "cosine"),
        ("_norm(made - given) / sizes", "_norm(made) / sizes", "added"),
        ("jnp.where(valid, ratio, jnp.nan)", "ratio", "growth"),
        ("jnp.abs(made), jnp.nan)", "jnp.abs(made), 0)", "ratio"),
        ("values[:, :, head]", "values[:, :, 0]", "value_residual"),
    ],
)
def test_a_fault_planted_in_the_states_is_seen(before: str, after: str, figure: str) -> None:
    from jaxllama.health import states as module

    with planted("jaxllama.health.states", before, after):
        found = module.stream_figures(*map(jnp.asarray, states()), jnp.asarray(rows()[3]))
    assert not np.allclose(getattr(found, figure)[:2], states_in_numpy()[figure], atol=1e-4)


@pytest.mark.parametrize("broken", [1.0, np.inf, np.nan])
def test_gradients(broken: float) -> None:
    drawn = np.random.default_rng(3)
    shapes = {"q_proj": (N * H, D), "k_proj": (K * H, D), "v_proj": (K * H, D), "norm": (D,)}
    stacks = {name: drawn.standard_normal((L, *shape)) for name, shape in shapes.items()}
    stacks["v_proj"][1] *= 50
    stacks["norm"][2] *= broken  # a layer that hides no other
    layers = [
        gradient_figures({name: stack[layer] for name, stack in stacks.items()}, N, K)
        for layer in range(L)
    ]
    found = jax.jit(gradient_norms, static_argnums=(1, 2))(
        {name: jnp.asarray(stack) for name, stack in stacks.items()}, N, K
    )
    over = {"over_median": "all weights", "value_over_median": "values' weights"}
    for name in set(found._fields) - {*over}:
        wanted = np.stack([getattr(one, name) for one in layers])
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-12, err_msg=name)
    for name, part in over.items():
        wanted = [one.get(part, np.nan) for one in over_median(layers)]
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-12, err_msg=name)
    assert len({float(x) for x in found.query_to_value}) == L
