"""What is compiled: no more for more stacked layers, and no copy of a weight in what writes."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from generating import operands
from small_llama import CONFIG

from jaxllama import generate as generation
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


def copies_of_weights(form: Form) -> set[str]:
    """Return what a call that writes makes of weights before its loops, in words of the program."""
    model = Llama(CONFIG, dtype="bfloat16", form=form, rngs=nnx.Rngs(0))
    graph, given = operands(model, [[1, 2, 3]] * 8, new=16)
    generation._advance.clear_cache()
    lowered = generation._advance.lower(graph, *given, jnp.int32(8))
    entry = (lowered.compile().as_text() or "").split("\nENTRY ")[1]
    matrices = {tuple(sorted(w.shape)) for w in jax.tree.leaves(given[0]) if min(w.shape) > 8}
    assert matrices and " while(" in entry
    return {
        f"{dtype}[{shape}]"
        for dtype, shape, operation in re.findall(r"= (\w+)\[([\d,]+)\]\S* ([\w-]+)\(", entry)
        if operation not in ("parameter", "get-tuple-element")
        and tuple(sorted(int(n) for n in shape.split(",") if int(n) > 1)) in matrices
    }


@pytest.mark.ill_typed  # descriptions of arrays stand in for arrays
@pytest.mark.parametrize("form", ["unrolled", "fused"])
def test_a_call_that_writes_makes_nothing_of_weights_outside_its_loops(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not copies_of_weights(form)
    # Negative control: XLA takes out of a loop what is the same each time, such as a wider head.
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda held: held)
    assert copies_of_weights(form)
    generation._advance.clear_cache()
