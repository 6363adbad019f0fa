"""cuDNN's flash attention, as far as a machine without a GPU can tell: when it is chosen, and that
the model, its prompts and its gradients lower for CUDA with the kernel in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export
from jax._src.cudnn import fused_attention_stablehlo as of_jax
from small_llama import CONFIG

from jaxllama import generate as generation
from jaxllama.attention import cudnn, fastest_backend, knows_rules
from jaxllama.cache import KVCache
from jaxllama.errors import InputError
from jaxllama.loss import next_token_loss
from jaxllama.masks import BoundMask, Tokens, causal, padding, window
from jaxllama.model import Llama

B, T, S = 2, 6, 9
KERNEL, BACKWARD = "__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("
HEADS_OF_8 = CONFIG.replace(head_dim=8)
SEEN = causal() & padding()
LENGTHS = jnp.array([T, 4])


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace what is traced beside an H100; JAX's own questions to it are answered, too."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "capability", lambda: (9, 0))
    monkeypatch.setattr(of_jax, "check_cudnn_version", lambda: 91400)
    monkeypatch.setattr(of_jax, "check_compute_capability", lambda least: True)
    monkeypatch.setattr(of_jax, "is_cuda_compute_capability_equal", lambda other: False)
    cudnn._jax_takes.cache_clear()
    with jax.numpy_dtype_promotion("standard"):  # JAX's own kernel, lowered late
        yield
    cudnn._jax_takes.cache_clear()


def bound(rule: Any = SEEN, queries: int = T) -> BoundMask:
    return rule.bind(Tokens.contiguous(LENGTHS, queries), Tokens.contiguous(LENGTHS, S))


def hidden(tokens: int = T, dtype: str = "bfloat16") -> jax.Array:
    return jnp.zeros((B, tokens, 3), dtype)


@pytest.mark.usefixtures("hopper")
def test_it_is_chosen_where_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_backend("xla", bound(), hidden(), 64) == "cudnn"
    assert fastest_backend("xla", bound(padding()), hidden(dtype="float16"), 256) == "cudnn"
    index = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    left = Tokens(jnp.maximum(index - 3, 0), index >= 3)
    for mask, x, size in (
        (bound(SEEN & window(3)), hidden(), 64),
        (bound().to_bool(), hidden(), 64),
        (SEEN.bind(left, left), hidden(S), 64),
        (bound(queries=1), hidden(1), 64),
        (bound(), hidden(dtype="float32"), 64),
        (bound(), hidden(), 60),
        (bound(), hidden(), 264),
    ):
        assert fastest_backend("xla", mask, x, size) == "xla"
    assert fastest_backend("blockwise", bound(), hidden(), 64) == "blockwise"
    monkeypatch.setattr(cudnn, "capability", lambda: (7, 5))
    assert fastest_backend("xla", bound(), hidden(), 64) == "xla"


def test_it_is_not_chosen_where_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of another maker, or one whose cuDNN JAX does not find."""
    assert cudnn.capability() == (0, 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fastest_backend("xla", bound(), hidden(), 64) == "xla"
    monkeypatch.setattr(cudnn, "capability", lambda: (9, 0))

    def lacking() -> int:
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(of_jax, "check_cudnn_version", lacking)
    cudnn._jax_takes.cache_clear()
    assert fastest_backend("xla", bound(), hidden(), 64) == "xla"


def for_cuda(function: Any, *operands: Any) -> str:
    """Return the program of a function of pytrees, lowered for CUDA alone."""
    leaves, structure = jax.tree.flatten(operands)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    kept = [export.DisabledSafetyCheck.custom_call(name[:-1]) for name in (KERNEL, BACKWARD)]
    exported = export.export(jax.jit(flat), platforms=["cuda"], disabled_checks=kept)(*leaves)
    program: str = exported.mlir_module()
    return program


@pytest.mark.parametrize(("backend", "rule"), [("xla", SEEN), ("cudnn", SEEN & window(3))])
@pytest.mark.usefixtures("hopper")
def test_gradients_lower_with_the_kernel(backend: Any, rule: Any) -> None:
    """Chosen unasked; and by name, of a mask with a window."""
    model = Llama(HEADS_OF_8, dtype="bfloat16", backend=backend, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(model)
    ids = jnp.zeros((B, T), jnp.int32)

    def loss(weights: Any, lengths: Any) -> jax.Array:
        tokens = Tokens.contiguous(lengths, T)
        mask = rule.bind(tokens, tokens)
        logits, _ = nnx.merge(graph, weights)(ids, positions=tokens.positions, mask=mask)
        return next_token_loss(logits, ids, valid=tokens.valid)

    forward, slopes = (for_cuda(one, weights, LENGTHS) for one in (loss, jax.grad(loss)))
    assert forward.count(KERNEL) == 1 and forward.count(BACKWARD) == 0  # of a scan over layers
    assert slopes.count(KERNEL) == slopes.count(BACKWARD) == 1


@pytest.mark.parametrize(("asked", "told"), [("xla", True), ("blockwise", False)])
@pytest.mark.usefixtures("hopper")
def test_a_prompt_is_read_by_the_kernel_and_a_step_is_not(asked: Any, told: bool) -> None:
    model = Llama(HEADS_OF_8, dtype="bfloat16", backend=asked, rngs=nnx.Rngs(0))
    assert knows_rules(asked)
    graph, weights = nnx.split(model)
    cache = KVCache.empty(HEADS_OF_8, B, S, "bfloat16")

    def read(weights: Any, cache: KVCache, tokens: Any, lengths: Any) -> Any:
        valid = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        return generation.feed(nnx.merge(graph, weights), cache, tokens, valid, lengths)

    for tokens, count in ((T, int(told)), (1, 0)):
        ids = jnp.zeros((B, tokens), jnp.int32)
        assert for_cuda(read, weights, cache, ids, LENGTHS).count(KERNEL) == count


@pytest.mark.usefixtures("hopper")
def test_a_model_on_a_mesh_has_none() -> None:
    with pytest.raises(InputError, match="lies on a mesh, which the kernel was not tried on"):
        Llama.from_pretrained("tiny", dtype="bf16", backend="cudnn", mesh="tensor=1")
