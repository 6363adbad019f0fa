"""The splash kernel, interpreted: against the reference, and by probes of its mask and positions.

Without a TPU the kernel's program is run by Pallas on the CPU, lowered for a TPU by
`tests/jaxllama/test_lowering.py`, and compiled by a TPU's own compiler where libtpu is installed.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jaxllama.attention import attend, backends, fastest_backend
from jaxllama.attention.splash import attend_splash, splash_arguments
from jaxllama.errors import InputError
from jaxllama.masks import BoundMask, Tokens, causal, explicit, padding, segments, window
from jaxllama.model import Llama
from jaxllama.plan.devices import DEVICES
from jaxllama.plan.topology import mesh_of

# Two blocks of queries, neither of them full; more keys than queries, as of a cache.
B, T, S, N, K, H = 2, 150, 170, 4, 2, 8
SCALE = 0.61
SEEN = causal() & padding()
# Row 1 has fewer keys than queries: those a window past its end see nothing.
LENGTHS = (T, 37)


def bound(name: str) -> BoundMask:
    rules = {"causal": SEEN, "window": SEEN & window(20), "lengths": padding()}
    lengths = jnp.array(LENGTHS)
    queries, keys = (Tokens.contiguous(lengths, size) for size in (T, S))
    return rules[name].bind(queries, keys)


def heads(seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = [(B, T, N, H), (B, S, K, H), (B, S, K, H)]
    return [jnp.asarray(rng.standard_normal(shape) * 1.5, jnp.float32) for shape in shapes]


@partial(jax.jit, static_argnames="name")
def splash(q: Any, k: Any, v: Any, name: str) -> jax.Array:
    told = splash_arguments(T, bound(name))
    assert told is not None
    return attend_splash(q, k, v, told, SCALE, interpret=True)


@partial(jax.jit, static_argnames="name")
def reference(q: Any, k: Any, v: Any, name: str) -> jax.Array:
    return attend(q, k, v, bound(name).to_bool(), scale=SCALE, backend="xla")


@pytest.mark.parametrize("name", ["causal", "window", "lengths"])
def test_equals_the_reference_and_empty_rows_are_exactly_zero(name: str) -> None:
    q, k, v = heads(0)
    found, expected = splash(q, k, v, name), reference(q, k, v, name)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    dead = ~np.asarray(bound(name).to_bool()).any(-1)
    assert dead.any() == (name == "window") and not np.asarray(found)[dead].any()
    # Negative controls: one key more, and heads tiled that are to be repeated.
    moved = attend(q, k, v, jnp.roll(bound(name).to_bool(), 1, axis=2), scale=SCALE)
    tiled = reference(q.reshape(B, T, K, N // K, H).swapaxes(2, 3).reshape(q.shape), k, v, name)
    assert np.abs(moved - found).max() > 0.1 < np.abs(tiled - found).max()


@pytest.mark.parametrize("name", ["causal", "window"])
def test_each_query_weighs_the_keys_of_its_mask_and_no_other(name: str) -> None:
    """With an identity for values an output is a row of weights: of keys, head by head."""
    q, k, _ = heads(1)
    seen = np.asarray(bound(name).to_bool())
    for first in range(0, S, H):
        identity = (
            jnp.zeros((B, S, K, H)).at[:, first : first + H].set(jnp.eye(H)[: S - first, None, :])
        )
        weights = np.asarray(splash(q, k, identity, name))
        here = seen[:, :, None, first : first + H]
        shown = weights[..., : here.shape[-1]] > 0
        np.testing.assert_array_equal(shown, np.broadcast_to(here, shown.shape))


def test_a_hidden_key_moves_no_bit_and_a_seen_one_moves_its_queries() -> None:
    q, k, v = heads(2)
    before = np.asarray(splash(q, k, v, "window"))
    for row, key in ((0, 40), (0, 127), (0, 128), (1, 36), (1, 60)):
        after = splash(q, k.at[row, key].add(3.0), v.at[row, key].add(5.0), "window")
        moved = (np.asarray(after) != before).any(axis=(2, 3))
        np.testing.assert_array_equal(
            moved[row], np.asarray(bound("window").to_bool())[row, :, key]
        )
        assert not moved[1 - row].any()


@pytest.mark.parametrize("name", ["causal", "window"])
def test_gradients_are_the_references(name: str) -> None:
    q, k, v = heads(3)

    def slopes(run: Any) -> Any:
        return jax.grad(lambda *a: jnp.sum(jnp.square(run(*a, name))), (0, 1, 2))(q, k, v)

    for theirs, ours in zip(slopes(splash), slopes(reference), strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * float(jnp.abs(ours).max()))
    dead = ~np.asarray(bound(name).to_bool()).any(-1)
    assert not np.asarray(slopes(splash)[0])[dead].any()


@pytest.mark.skipif(find_spec("libtpu") is None, reason="takes libtpu: pip install jaxllama[tpu]")
@pytest.mark.parametrize(("heads", "dtype"), [((32, 8, 128), "bfloat16"), ((9, 3, 64), "float32")])
def test_a_tpus_compiler_takes_it_and_its_gradients(
    heads: tuple[int, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = mesh_of({"data": 1, "fsdp": 1, "tensor": 4}, DEVICES["v5e"]).devices.flat[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    queries, keys, size = heads

    def described(*shape: int, dtype: str = dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    def loss(q: Any, k: Any, v: Any, lengths: Any) -> jax.Array:
        tokens = Tokens.contiguous(lengths, 600)
        mask = (SEEN & window(100)).bind(tokens, tokens)
        return attend(q, k, v, mask, scale=SCALE, backend="splash").astype(jnp.float32).sum()

    shapes = [described(2, 600, n, size) for n in (queries, keys, keys)]
    with jax.numpy_dtype_promotion("standard"):
        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes, described(2, dtype="int32"))
    assert lowered.compile().as_text().count("tpu_custom_call") >= 3


def test_what_it_cannot_be_told_is_not_left_to_it() -> None:
    tokens = Tokens.contiguous(jnp.array([T, T]), T)
    index = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (2, T))
    left = Tokens(jnp.maximum(index - 6, 0), index >= 6)
    packed = Tokens(index % 70, index >= 0, index // 70)
    assert splash_arguments(T, SEEN.bind(tokens, tokens)) is not None
    for mask in (
        SEEN.bind(left, left),
        (SEEN & segments()).bind(packed, packed),
        (SEEN & explicit(jnp.ones((2, T, T), bool))).bind(tokens, tokens),
        SEEN.bind(tokens, tokens).to_bool(),
    ):
        assert splash_arguments(T, mask) is None
    step = SEEN.bind(Tokens(index[:, -1:], index[:, -1:] >= 0), tokens)
    assert splash_arguments(1, step) is None


def test_on_a_tpu_it_is_chosen_where_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.zeros((B, T, 3), jnp.bfloat16)
    mask, other = bound("causal"), bound("causal").to_bool()
    assert fastest_backend("xla", mask, x, H) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert fastest_backend("xla", mask, x, H) == "splash"
    for backend, given, inputs in (
        ("xla", other, x),
        ("xla", mask, x.astype(jnp.float64)),
        ("xla", mask, x[:, :127]),
        ("blockwise", mask, x),
    ):
        assert fastest_backend(backend, given, inputs, H) == backend  # type: ignore[arg-type]
    # Asked for by name it takes what it can, and leaves the rest to what is exact.
    q, k, v = heads(4)
    interpreted = partial(attend_splash, interpret=True)
    monkeypatch.setattr(backends, "attend_splash", interpreted)
    by_name, by_cells = (attend(q, k, v, m, scale=SCALE, backend="splash") for m in (mask, other))
    np.testing.assert_allclose(by_name, by_cells, atol=1e-5)
    assert (np.asarray(by_name) != np.asarray(by_cells)).any()  # two ways, not one


def test_what_stands_in_its_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="JAX runs on cpu, expected tpu; use xla"):
        Llama.from_pretrained("tiny", backend="splash")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(
        InputError, match="lies on a mesh, where XLA cannot cut the kernel; use xla"
    ):
        Llama.from_pretrained("tiny", backend="splash", mesh="tensor=1")
    with pytest.raises(InputError, match="dtype float64, expected one of bfloat16, float32"):
        attend(
            *(x.astype(jnp.float64) for x in heads(0)), bound("causal"), scale=1, backend="splash"
        )
