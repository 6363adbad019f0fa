"""What is compiled of stacked layers does not grow with their number."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small_llama import CONFIG

from jaxllama.forms import Form
from jaxllama.masks import Tokens, causal
from jaxllama.model import Llama

pytestmark = pytest.mark.optimised


def sizes(layers: int, form: Form) -> tuple[int, int]:
    """Return how many lines a forward pass has as it is traced, and as it is compiled."""
    config = CONFIG.replace(num_hidden_layers=layers)
    model = nnx.eval_shape(lambda: Llama(config, dtype="float32", form=form, rngs=nnx.Rngs(0)))

    def forward(model: Llama, ids: Any) -> Any:
        row = Tokens(jnp.arange(8)[None], jnp.ones((1, 8), bool), jnp.zeros((1, 8), jnp.int32))
        positions = jnp.arange(8)[None]
        return model(ids, positions=positions, mask=causal().bind(row, row))[0]

    traced = jax.jit(forward).lower(model, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    return traced.as_text().count("\n"), traced.compile().as_text().count("\n")


@pytest.mark.parametrize("stage", ["traced", "compiled"])
def test_126_stacked_layers_are_as_large_a_program_as_8(stage: str) -> None:
    which = ("traced", "compiled").index(stage)
    assert sizes(126, "stacked")[which] <= 1.05 * sizes(8, "stacked")[which]
    # Negative control: unrolled layers are more of it.
    assert sizes(8, "unrolled")[which] > 2 * sizes(2, "unrolled")[which]
