"""The forward pass lowers for CUDA and TPU, on any machine: nothing in it knows the CPU alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir
from small_llama import CONFIG

from jaxllama.attention import Backend
from jaxllama.cache import KVCache
from jaxllama.masks import Tokens, causal, padding
from jaxllama.model import Llama
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
