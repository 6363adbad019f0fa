"""The figures of a training step are those that parity takes of the same taps in NumPy."""

from __future__ import annotations

from typing import Any

import attention_maps as maps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_llama
from flax import nnx
from planting import planted

from jaxllama import Taps, next_token_loss
from jaxllama.errors import InputError
from jaxllama.health import HealthFigures, entropy, health_figures, largest_logit, rank_residual
from jaxllama.masks import Tokens, causal, padding
from parity.health.metrics.attention import head_figures
from parity.health.metrics.states import rank_residual as rank_residual_in_numpy

CONFIG, B, T = small_llama.CONFIG, 2, 23
LIMITS = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-6}


def inputs() -> tuple[jax.Array, Tokens]:
    tokens = jnp.asarray(small_llama.random_tokens(CONFIG, B, T))
    valid = jnp.arange(T)[None] < jnp.array([[T], [T - 6]])
    return tokens, Tokens(jnp.where(valid, jnp.arange(T)[None], 0), valid)


def recorded(dtype: str) -> tuple[dict[str, Any], Any]:
    tokens, known = inputs()
    taps = Taps()
    model = small_llama.build(CONFIG, dtype)
    mask = (causal() & padding()).bind(known, known)
    model(tokens, positions=known.positions, mask=mask, tap=taps)
    return taps.recorded(), known.valid


def in_numpy(taps: dict[str, Any], valid: np.ndarray) -> HealthFigures:
    layers, found = CONFIG.num_hidden_layers, []
    visible = np.asarray(taps["mask"])
    for layer in range(layers):
        arrays = {
            name: np.asarray(taps[f"layers.{layer}.{name}"])
            for name in ("attn_probs", "attn_scores", "output")
        }
        heads = [
            head_figures(arrays["attn_probs"][b], visible[b], arrays["attn_scores"][b])
            for b in range(B)
        ]
        states = arrays["output"].astype(np.float64)
        residual = [rank_residual_in_numpy(states[b][valid[b]]) for b in range(B)]
        found.append(([h.entropy for h in heads], [h.max_logit for h in heads], np.array(residual)))
    return HealthFigures(*(np.stack(part) for part in zip(*found, strict=True)))


@pytest.mark.parametrize("dtype", LIMITS)
def test_the_twin_is_held_equal_to_numpy(dtype: str) -> None:
    taps, valid = recorded(dtype)
    wanted = in_numpy(taps, np.asarray(valid))
    found = jax.jit(health_figures)(taps, valid)
    for name, one, other in zip(HealthFigures._fields, found, wanted, strict=True):
        assert one.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        np.testing.assert_allclose(one, other, rtol=LIMITS[dtype], err_msg=name)
    assert found.entropy.shape == (CONFIG.num_hidden_layers, B, CONFIG.num_attention_heads)


@pytest.mark.parametrize(
    ("before", "after", "figure"),
    [
        ("jnp.where(choice, count, 2)", "jnp.where(choice, count, 3) + 1", "entropy"),
        ("choice = count >= 2", "choice = count >= 1", "entropy"),
        ("wide, -jnp.inf)", "wide, 1e3)", "largest_logit"),
        ("jnp.where(real, wide - mean, 0)", "jnp.where(real, wide, 0)", "residual"),
    ],
)
def test_a_fault_planted_in_the_twin_is_seen(before: str, after: str, figure: str) -> None:
    taps, valid = recorded("float64")
    wanted = getattr(in_numpy(taps, np.asarray(valid)), figure)
    with planted("jaxllama.health.figures", before, after):
        found = getattr(health_figures(taps, valid), figure)
    assert not np.allclose(found, wanted, atol=1e-3)


def test_a_training_step_can_have_them_and_trains_as_without() -> None:
    tokens, known = inputs()
    graph, state = nnx.split(small_llama.build(CONFIG, "float32"))
    mask = (causal() & padding()).bind(known, known)

    def loss(state: nnx.State, watched: bool) -> tuple[jax.Array, HealthFigures | None]:
        taps = Taps()
        logits, _ = nnx.merge(graph, state)(tokens, positions=known.positions, mask=mask, tap=taps)
        figures = health_figures(taps.recorded(), known.valid) if watched else None
        value = next_token_loss(logits, tokens, valid=known.valid)
        if figures is not None:  # even added to the loss they leave its gradients alone
            value = value + 0 * figures.entropy.sum() + 0 * figures.residual.sum()
        return value, figures

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (bare, _), (watched, figures) = step(state, False), step(state, True)
    assert figures is not None and bool(jnp.isfinite(figures.entropy).all())
    for one, other in zip(jax.tree.leaves(bare), jax.tree.leaves(watched), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_known_maps() -> None:
    mask = jnp.asarray(maps.causal(T))[None]
    weights = jnp.asarray(np.stack([maps.uniform(T), maps.previous(T)]))[None]
    np.testing.assert_allclose(entropy(weights, mask)[0], [1, 0], atol=1e-12)
    scores = jnp.zeros((1, 1, T, T)).at[0, 0, 2, 5].set(9.0).at[0, 0, 5, 2].set(4.0)
    assert largest_logit(scores, mask).item() == 4
    alike = jnp.broadcast_to(jnp.arange(1.0, 7.0), (1, T, 6))
    assert rank_residual(alike, jnp.ones((1, T), bool)).item() == pytest.approx(0, abs=1e-12)


def test_rows_of_pads_have_no_figures() -> None:
    mask, valid = jnp.zeros((1, T, T), bool), jnp.zeros((1, T), bool)
    weights = jnp.ones((1, 2, T, T))
    assert jnp.isnan(entropy(weights, mask)).all()
    assert jnp.isnan(largest_logit(weights, mask)).all()
    assert jnp.isnan(rank_residual(jnp.ones((1, T, 6)), valid)).all()


def test_a_pass_that_shows_no_weights_is_refused() -> None:
    taps, valid = recorded("float32")
    for name in ("mask", "layers.2.attn_probs"):
        with pytest.raises(InputError, match=rf"health: the taps have no {name};"):
            health_figures({k: v for k, v in taps.items() if k != name}, valid)
    with pytest.raises(InputError, match=r"the taps have no mask"):
        health_figures({}, valid)
