"""A model taken apart into arrays by name, and put together again."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxllama.layers.low_rank import LowRank
from jaxllama.model import Llama

# By dotted path, such as `layers.self_attn.q_proj.weight`: of a stacked model, of all layers.
Weights = dict[str, jax.Array]
# What stands in place of `weight` where a weight has factors: see `LowRank`.
FACTOR_A, FACTOR_B, SCALE = "lora_A", "lora_B", "lora_scale"
# What QK-norm trains beside the model, by the tap that it normalises: no Llama has them.
QK_NORMS = {"q_proj": "layers.self_attn.q_norm.weight", "k_proj": "layers.self_attn.k_norm.weight"}


def taken_apart(model: Llama) -> tuple[Any, Weights]:
    """Return what a model is without its arrays, and these by name."""
    graph, state = nnx.split(model)
    return graph, {
        ".".join(map(str, path)): held.get_value() for path, held in nnx.to_flat_state(state)
    }


def path_of(name: str) -> tuple[str | int, ...]:
    """Return a path of attributes, and numbers where layers are apart."""
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def holding(graph: Any, weights: Weights) -> Llama:
    """Return the model that has these arrays; factors beside the weights that they are added to.

    `QK_NORMS` are left to the tap that it runs with.
    """
    held: Any = {
        path_of(name): nnx.Param(_with_factors(weights, name, value))
        for name, value in weights.items()
        if not name.endswith((FACTOR_A, FACTOR_B, SCALE)) and name not in QK_NORMS.values()
    }
    return nnx.merge(graph, nnx.from_flat_state(held))


def _with_factors(weights: Weights, name: str, value: jax.Array) -> jax.Array | LowRank:
    module = name.removesuffix("weight")
    if module + FACTOR_A not in weights:
        return value
    return LowRank(value, *(weights[module + part] for part in (FACTOR_A, FACTOR_B, SCALE)))
