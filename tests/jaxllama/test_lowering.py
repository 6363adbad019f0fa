"""Model, generation and gradients lower for CUDA and TPU: nothing in them knows the CPU alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from generating import operands
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir
from small_llama import CONFIG

from jaxllama import generate as generation
from jaxllama.attention import Backend, knows_rules
from jaxllama.cache import KVCache
from jaxllama.forms import Form
from jaxllama.layers.linear import product
from jaxllama.loss import next_token_loss
from jaxllama.masks import Tokens, causal, padding, window
from jaxllama.model import Llama
from jaxllama.sampling import Sampling
from jaxllama.taps import Taps, Untapped, untapped

ACCELERATORS = ("cuda", "tpu")
B, T, S = 2, 5, 7


def lowered(dtype: str, backend: Backend, *, cached: bool = False, tap: Any = untapped) -> Any:
    """Export the forward pass, or a step through a cache, for both accelerators."""
    model = nnx.eval_shape(lambda: Llama(CONFIG, dtype=dtype, backend=backend, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)

    def forward(state: Any, tokens: Any, queries: Tokens, cache: KVCache | None) -> Any:
        keys = queries
        if cache is not None:
            cache = cache.extend(queries.positions, queries.valid, queries.segments)
            keys = cache.tokens()
        mask = (causal() & padding()).bind(queries, keys)
        given = {"positions": queries.positions, "mask": mask, "cache": cache, "tap": tap}
        return nnx.merge(graph, state)(tokens, **given), tap.recorded()

    ids = jnp.zeros((B, T), jnp.int32)
    queries = Tokens(ids, jnp.ones((B, T), bool), ids)
    cache = KVCache.empty(CONFIG, B, S, dtype) if cached else None
    leaves, structure = jax.tree.flatten((state, ids, queries, cache))

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(forward(*jax.tree.unflatten(structure, leaves)))

    return export.export(jax.jit(flat), platforms=ACCELERATORS)(*leaves)


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["xla", "dot_product"])
def test_the_forward_pass_lowers(backend: Backend, dtype: str, cached: bool) -> None:
    exported = lowered(dtype, backend, cached=cached)
    assert exported.platforms == ACCELERATORS
    assert exported.out_avals[0].shape == (B, T, CONFIG.vocab_size)
    assert exported.out_avals[0].dtype == jnp.float32
    # One layer's program, run L times.
    assert "stablehlo.while" in exported.mlir_module()


def test_the_captured_pass_lowers() -> None:
    exported = lowered("bfloat16", "xla", cached=True, tap=Taps())
    assert len(exported.out_avals) > 20 * CONFIG.num_hidden_layers


@pytest.fixture(params=["gpu", "tpu"])
def traced_elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Trace what is traced where JAX's devices are others: a CPU has ways of its own."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return str(request.param)


def flattened(function: Any, *operands: Any) -> Any:
    """Export a function of pytrees for both accelerators."""
    leaves, structure = jax.tree.flatten(operands)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    return export.export(jax.jit(flat), platforms=ACCELERATORS)(*leaves)


@pytest.mark.ill_typed  # descriptions of arrays stand in for arrays
@pytest.mark.parametrize("form", ["stacked", "unrolled", "fused"])
@pytest.mark.usefixtures("traced_elsewhere")
def test_the_whole_of_generation_lowers(form: Form) -> None:
    """Prefill, the loop of steps, sampling with all its filters, an int8 cache."""
    model = Llama(CONFIG, dtype="bfloat16", form=form, rngs=nnx.Rngs(0))
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
    graph, given = operands(
        model, [[1, 2, 3], [4, 5]], new=4, cache_dtype="int8", sampling=sampling
    )
    exported = flattened(partial(generation._advance, graph), *given, jnp.int32(4))
    assert exported.mlir_module().count("stablehlo.while") >= 2


@pytest.mark.parametrize("backend", ["xla", "blockwise", "dot_product"])
@pytest.mark.usefixtures("traced_elsewhere")
def test_gradients_lower(backend: Backend) -> None:
    model = Llama(CONFIG, dtype="bfloat16", backend=backend, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(model)
    ids = jnp.zeros((B, T), jnp.int32)
    tokens = Tokens(ids, jnp.ones((B, T), bool), ids)

    def slopes(weights: Any) -> Any:
        def loss(weights: Any) -> jax.Array:
            mask = (causal() & padding()).bind(tokens, tokens)
            logits, _ = nnx.merge(graph, weights)(ids, positions=ids, mask=mask)
            return next_token_loss(logits, ids, valid=tokens.valid)

        return jax.grad(loss)(weights)

    with jax.numpy_dtype_promotion("standard"):  # JAX's own kernel, lowered late
        exported = flattened(slopes, weights)
    assert len(exported.out_avals) == len(jax.tree.leaves(weights))


KERNEL = "tpu_custom_call"
LONG = 150


def for_a_tpu(function: Any, *operands: Any) -> str:
    """Return the program of a function of pytrees, lowered for a TPU alone."""
    leaves, structure = jax.tree.flatten(operands)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    program: str = export.export(jax.jit(flat), platforms=["tpu"])(*leaves).mlir_module()
    return program


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("traced_elsewhere", ["tpu"], indirect=True)
@pytest.mark.usefixtures("traced_elsewhere")
def test_splash_attention_and_its_gradients_lower(dtype: str) -> None:
    model = Llama(CONFIG, dtype=dtype, backend="splash", rngs=nnx.Rngs(0))
    graph, weights = nnx.split(model)
    ids = jnp.zeros((B, LONG), jnp.int32)
    lengths = jnp.array([LONG, 7])

    def loss(weights: Any, lengths: Any) -> jax.Array:
        tokens = Tokens.contiguous(lengths, LONG)
        mask = (causal() & padding() & window(20)).bind(tokens, tokens)
        positions = jnp.broadcast_to(jnp.arange(LONG, dtype=jnp.int32), ids.shape)
        logits, _ = nnx.merge(graph, weights)(ids, positions=positions, mask=mask)
        return next_token_loss(logits, ids, valid=tokens.valid)

    assert for_a_tpu(loss, weights, lengths).count(KERNEL) == 1  # of a scan over layers
    # Forwards, and backwards to queries and to keys and values.
    assert for_a_tpu(jax.grad(loss), weights, lengths).count(KERNEL) == 3


@pytest.mark.parametrize(
    ("prompt", "form"), [(LONG, "stacked"), (LONG, "unrolled"), (3, "stacked")]
)
@pytest.mark.parametrize("traced_elsewhere", ["tpu", "gpu"], indirect=True)
def test_a_long_prompt_is_read_by_splash_attention_on_a_tpu(
    traced_elsewhere: str, prompt: int, form: Form
) -> None:
    jax.clear_caches()  # of the same calls, as they were traced for the other
    model = Llama(CONFIG, dtype="bfloat16", form=form, rngs=nnx.Rngs(0))
    graph, given = operands(model, [[1] * prompt], new=4, fresh=knows_rules(model.backend))
    program = for_a_tpu(partial(generation._advance, graph), *given, jnp.int32(4))
    told = traced_elsewhere == "tpu" and prompt == LONG
    assert program.count(KERNEL) == told  # one function, whoever calls it


def test_a_cpus_own_ways_are_not_traced_elsewhere(traced_elsewhere: str) -> None:
    x, weight = jnp.ones((1, 4), jnp.bfloat16), jnp.ones((6, 4), jnp.bfloat16)
    traced = str(jax.make_jaxpr(lambda x: product(x, weight, "float32"))(x))
    assert "concatenate" not in traced, traced_elsewhere


class CpuOnly(Untapped):
    """A model with one operation in it that exists on the CPU alone."""

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        return cpu_only.bind(value) if name == "q_rope" else value


cpu_only = Primitive("cpu_only")
cpu_only.def_abstract_eval(lambda value: value)
mlir.register_lowering(cpu_only, lambda _, value: [value], platform="cpu")


def test_the_check_would_see_what_does_not_lower() -> None:
    """Negative control."""
    with pytest.raises(NotImplementedError, match=r"'cpu_only' not found for platforms"):
        lowered("float32", "xla", tap=CpuOnly())
    exported = export.export(jax.jit(cpu_only.bind), platforms=["cpu"])(jnp.zeros(1))
    assert exported.platforms == ("cpu",)
