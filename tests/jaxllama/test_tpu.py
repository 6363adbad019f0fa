"""On a TPU: the splash kernel, as it is compiled there, against the reference in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama import Llama
from jaxllama.attention import attend
from jaxllama.masks import BoundMask, Tokens, causal, padding, window

pytestmark = pytest.mark.tpu

B, T, N, K, H = 2, 600, 8, 2, 64
SCALE = H**-0.5
LENGTHS = (T, 290)


def bound(size: int | None) -> BoundMask:
    tokens = Tokens.contiguous(jnp.array(LENGTHS), T)
    rule = causal() & padding()
    return (rule if size is None else rule & window(size)).bind(tokens, tokens)


def heads(dtype: str) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def exact(q: Any, k: Any, v: Any, mask: np.ndarray) -> np.ndarray:
    q, k, v = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    weights = np.where(mask[:, None], np.exp(np.einsum("btnh,bsnh->bnts", q, k) * SCALE), 0.0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), np.finfo(float).tiny)
    return np.einsum("bnts,bsnh->btnh", weights, v)


@pytest.mark.parametrize("size", [None, 100])
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 2.0**-6)])
def test_splash_obeys_the_mask_it_is_given(dtype: str, limit: float, size: int | None) -> None:
    q, k, v = heads(dtype)
    mask = bound(size)
    dense = np.asarray(mask.to_bool())
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda *a: attend(*a, scale=SCALE, backend="splash"))
        found = np.asarray(run(q, k, v, mask).astype(jnp.float32))
    assert np.abs(found - exact(q, k, v, dense)).max() < limit * float(jnp.abs(v).max())
    assert not found[~dense.any(-1)].any()
    wrong = exact(q, k, v, np.roll(dense, 1, axis=2))
    assert np.abs(found - wrong).max() > 4 * limit * float(jnp.abs(v).max())


def test_splash_gradients_are_the_references() -> None:
    q, k, v = heads("float32")

    def slopes(backend: Any) -> list[np.ndarray]:
        def loss(q: Any, k: Any, v: Any) -> jax.Array:
            return jnp.sum(jnp.square(attend(q, k, v, bound(100), scale=SCALE, backend=backend)))

        with jax.default_matmul_precision("highest"):
            return [np.asarray(x) for x in jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)]

    for theirs, ours in zip(slopes("splash"), slopes("xla"), strict=True):
        assert np.isfinite(theirs).all()
        assert np.linalg.norm(theirs - ours) < 1e-3 * np.linalg.norm(ours)


def test_a_model_writes_the_same_by_splash_as_by_blocks() -> None:
    prompt = [[7 + i % 50 for i in range(200)]]
    texts = []
    for backend in ("xla", "blockwise"):  # the first becomes splash here
        with jax.default_matmul_precision("highest"):
            model = Llama.from_pretrained("tiny", backend=backend)  # type: ignore[arg-type]
            texts.append(model.generate(prompt, max_new_tokens=8, eos_ids=()))
    np.testing.assert_array_equal(texts[0].tokens, texts[1].tokens)
    np.testing.assert_allclose(texts[0].logprobs, texts[1].logprobs, atol=1e-3)
