"""What devices tell each other, read in the compiled program of generation."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from generating import operands
from jax import export
from witnesses import LAYERS, small

from jaxllama import generate as generation
from jaxllama.checkpoint import load_model
from jaxllama.forms import Form
from jaxllama.loss import next_token_loss
from jaxllama.masks import Tokens, causal, padding

# Lowering hands descriptions of arrays in where annotations say arrays.
pytestmark = pytest.mark.ill_typed
ROWS, CHECKPOINT = 8, small((8, 2))
CONFIG = CHECKPOINT.config
D, H, K = CONFIG.hidden_size, CONFIG.head_dim, CONFIG.num_key_value_heads


def compiled(mesh: str, form: Form) -> jax.stages.Compiled:
    """Return the program that generates, prefill and steps."""
    model = load_model(CHECKPOINT, dtype="float32", mesh=mesh, form=form)
    graph, given = operands(model, [[1, 2, 3]] * ROWS, new=20)
    lowered = generation._advance.lower(graph, *given, jnp.int32(8))
    return lowered.compile()


def told(program: jax.stages.Compiled) -> Counter[tuple[str, tuple[int, ...]]]:
    """Count operations between devices, by kind and the shape that each has in the end."""
    pattern = r"= f32\[([\d,]*)\]\S* (all-gather|all-reduce|all-to-all|collective-permute)\("
    return Counter(
        (kind, tuple(int(n) for n in shape.split(",") if n))
        for shape, kind in re.findall(pattern, program.as_text() or "")
    )


def weights_gathered(program: jax.stages.Compiled) -> list[tuple[int, ...]]:
    """Return the shapes of what is put together and has the size of a product's weights."""
    return [s for kind, s in told(program) if kind == "all-gather" and D in s and len(s) >= 2]


@pytest.mark.parametrize("form", ["stacked", "unrolled"])
def test_one_program_serves_all_calls(form: Form) -> None:
    """Of a text that is shown as it is written, and of a conversation that goes on."""
    model = load_model(CHECKPOINT, dtype="float32", mesh="data=2,tensor=4", form=form)
    before = generation._advance._cache_size()

    def write(cache: Any = None) -> Any:
        return generation.generate(
            model, [[1, 2, 3]] * 2, max_new_tokens=6, eos_ids=(), cache=cache, watch=lambda _: {}
        )

    first = write()
    assert generation._advance._cache_size() == before + 1
    write()
    assert generation._advance._cache_size() == before + 1
    longer = write(first.cache)  # whose capacity is the same
    assert longer.cache.capacity == first.cache.capacity
    assert generation._advance._cache_size() == before + 1


@pytest.mark.parametrize("mesh", ["tensor=8", "tensor=2"])
def test_products_that_are_cut_by_heads_and_features_are_summed_twice_a_layer(mesh: str) -> None:
    program = compiled(mesh, "unrolled")
    sums = {shape: n for (kind, shape), n in told(program).items() if kind == "all-reduce"}
    step = sum(n for shape, n in sums.items() if shape in {(D, ROWS), (ROWS, 1, D)})
    assert step == 2 * LAYERS + 1  # and once for the embedding's rows
    assert not weights_gathered(program)


def test_a_cache_stays_where_it_is() -> None:
    for mesh in ("tensor=2", "data=4,tensor=2", "data=8"):
        for form in ("stacked", "unrolled"):
            moved = told(compiled(mesh, form))  # type: ignore[arg-type]
            # New keys and values [B, T, K, H] neither, nor a cache [.., S, ..] of 32 slots.
            assert not [shape for _, shape in moved if shape[-1:] == (H,)], (mesh, form)


def test_parameters_that_are_cut_are_put_together_a_layer_at_a_time() -> None:
    program = compiled("fsdp=8", "stacked")
    found = weights_gathered(program)
    assert (1, CONFIG.intermediate_size, D) in found or (CONFIG.intermediate_size, D) in found
    assert not [shape for shape in found if shape[0] == LAYERS and len(shape) == 3]


def test_memory_of_a_device_falls_with_their_number() -> None:
    def of(mesh: str) -> int:
        analysis = compiled(mesh, "stacked").memory_analysis()
        assert analysis is not None
        return analysis.argument_size_in_bytes

    one = of("data=1")
    assert of("tensor=8") < one / 2.4  # keys and values are whole, and a half of the bytes here
    assert of("fsdp=8") < one / 6


def slopes_of(mesh: str, form: Form, dtype: str = "float32") -> tuple[Any, Any]:
    """Return a function from a model's weights to their gradients, and the weights."""
    graph, weights = nnx.split(load_model(CHECKPOINT, dtype=dtype, mesh=mesh, form=form))
    tokens = Tokens.contiguous(jnp.full(ROWS, 5, jnp.int32), 5)

    def loss(weights: Any) -> jax.Array:
        mask = (causal() & padding()).bind(tokens, tokens)
        ids = jnp.ones((ROWS, 5), jnp.int32)
        logits, _ = nnx.merge(graph, weights)(ids, positions=tokens.positions, mask=mask)
        return next_token_loss(logits, ids, valid=tokens.valid)

    return jax.jit(jax.grad(loss)), weights


@pytest.mark.parametrize("form", ["stacked", "unrolled"])
@pytest.mark.parametrize("mesh", ["fsdp=2,tensor=4", "data=2,tensor=4"])
def test_gradients_lie_where_their_parameters_do(mesh: str, form: Form) -> None:
    slopes, weights = slopes_of(mesh, form)
    pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(slopes(weights)), strict=True)
    for weight, gradient in pairs:
        assert gradient.sharding.is_equivalent_to(weight.sharding, weight.ndim)


@pytest.mark.parametrize("mesh", ["fsdp=2,tensor=4", "data=2,tensor=4"])
def test_a_model_on_a_mesh_lowers_for_accelerators(mesh: str) -> None:
    slopes, weights = slopes_of(mesh, "stacked", "bfloat16")
    leaves, structure = jax.tree.flatten(weights)
    flat = jax.jit(lambda *leaves: jax.tree.leaves(slopes(jax.tree.unflatten(structure, leaves))))
    exported = export.export(flat, platforms=("cuda", "tpu"))(*leaves)
    assert exported.nr_devices == 8 and exported.platforms == ("cuda", "tpu")
