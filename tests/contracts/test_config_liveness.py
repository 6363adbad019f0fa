"""Every field of the config does something: perturb it, and the logits must move.

A field that is read and then ignored (the usual way in which rope scaling, eps or a tied head gets
lost) leaves the logits as they are, and is named here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import configs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import LLAMA3
from flax import nnx

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.model import Llama

CONFIG = configs.CONFIG.replace(head_dim=16)
# With H = 16 the wavelengths are 6, 32, 167, 862, 4443, 22908, ... tokens: one of them lies inside
# the blended band of 2048 to 8192 tokens. The positions reach where it has turned.
TOKENS = jnp.array([[3, 59, 14, 57, 26, 5, 58]], jnp.int32)
POSITIONS = jnp.array([[0, 1, 40, 900, 4001, 9002, 30003]], jnp.int32)

# What each field is changed to, with the weights kept. The three head counts share the weights'
# sizes: 6 heads of 16 and 12 of 8 are the same matrices.
NUMERIC: dict[str, dict[str, Any]] = {
    "num_attention_heads": {"num_attention_heads": 12, "head_dim": 8, "num_key_value_heads": 4},
    "num_key_value_heads": {"num_attention_heads": 12, "head_dim": 8, "num_key_value_heads": 4},
    "head_dim": {"num_attention_heads": 12, "head_dim": 8, "num_key_value_heads": 4},
    "rms_norm_eps": {"rms_norm_eps": 1e-6},
    "rope_theta": {"rope_theta": 499_000.0},
    "rope_scaling": {"rope_scaling": None},
    "rope_scaling.kind": {"rope_scaling": RopeScaling(kind="linear", factor=8.0)},
    "tie_word_embeddings": {"tie_word_embeddings": True},
} | {
    f"rope_scaling.{name}": {"rope_scaling": dataclasses.replace(LLAMA3, **{name: value})}
    for name, value in {
        "factor": 8.1,
        "low_freq_factor": 1.1,
        "high_freq_factor": 4.1,
        "original_max_position_embeddings": 8000,
    }.items()
}
# Changing one of these changes the weights' shapes instead.
STRUCTURAL = {
    "vocab_size": 62,
    "hidden_size": 41,
    "intermediate_size": 57,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 3,
    "head_dim": 18,
}
# No number may depend on these: which token is padding is the caller's to say, in the mask.
INERT = {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_ids": (2,), "pad_token_id": 3}

Build = Callable[[LlamaConfig], Llama]


def build(config: LlamaConfig) -> Llama:
    return Llama(config, dtype=jnp.float64, rngs=nnx.Rngs(0))


def weights_of(model: Llama) -> dict[str, jax.Array]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): param[...] for path, param in state}


def filled(build: Build, config: LlamaConfig, weights: dict[str, jax.Array]) -> Llama:
    """Return a model of these weights, made without random ones in between."""
    model = nnx.eval_shape(lambda: build(config))
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = weights[".".join(map(str, path))]
        assert param.get_value().shape == value.shape
        param.set_value(value)
    return model


@pytest.fixture(scope="module")
def weights() -> dict[str, jax.Array]:
    """Weights of unit-scale activations, with norm weights that are not all ones."""
    rng = np.random.default_rng(7)
    return {
        name: value * jnp.asarray(rng.uniform(0.4, 1.6, value.shape))
        for name, value in weights_of(build(CONFIG)).items()
    }


def logits(model: Llama) -> np.ndarray:
    T = TOKENS.shape[1]
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    return np.asarray(model(TOKENS, positions=POSITIONS, mask=mask)[0])


@pytest.fixture(scope="module")
def base(weights: dict[str, jax.Array]) -> np.ndarray:
    return logits(filled(build, CONFIG, weights))


@pytest.fixture
def shift(weights: dict[str, jax.Array], base: np.ndarray) -> Callable[..., float]:
    """By how much the logits move, relative to their spread, when fields change."""

    def measure(changes: dict[str, Any], build: Build = build) -> float:
        moved = logits(filled(build, CONFIG.replace(**changes), weights))
        return float(np.abs(moved - base).max() / base.std())

    return measure


# float64 noise is 1e-15; the smallest perturbation above moves the logits a million times further.
MOVED = 1e-9


def test_every_field_has_its_place_here():
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    assert fields == {name for name in NUMERIC if "." not in name} | set(STRUCTURAL) | set(INERT)
    scaling = {f"rope_scaling.{field.name}" for field in dataclasses.fields(RopeScaling)}
    assert scaling == {name for name in NUMERIC if "." in name}


@pytest.mark.parametrize("name", NUMERIC)
def test_numeric_fields_move_the_logits(name: str, shift: Callable[..., float]):
    assert shift(NUMERIC[name]) > MOVED


@pytest.mark.parametrize("name", STRUCTURAL)
def test_structural_fields_change_the_weights(name: str, weights: dict[str, jax.Array]):
    config = CONFIG.replace(**{name: STRUCTURAL[name]})
    abstract = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(config)), nnx.Param))
    shapes = {".".join(map(str, path)): param.get_value().shape for path, param in abstract}
    assert shapes != {name: value.shape for name, value in weights.items()}


def test_inert_fields_move_nothing(shift: Callable[..., float]):
    assert shift(INERT) == 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 500_000.0),
        ("rope_scaling", LLAMA3),
        ("tie_word_embeddings", False),
    ],
)
def test_a_dead_field_is_noticed(name: str, value: Any, shift: Callable[..., float]):
    """A model that hard-codes the field, right for this checkpoint and wrong for the next."""

    def build_deaf(config: LlamaConfig) -> Llama:
        return build(config.replace(**{name: value}))

    assert shift(NUMERIC[name], build_deaf) == 0.0
