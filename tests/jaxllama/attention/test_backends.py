"""Attention: every backend against plain NumPy under the same explicit masks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.attention import Backend, attend
from jaxllama.errors import InputError
from jaxllama.masks import BoundMask, Tokens, causal, explicit, padding, segments, window
from jaxllama.taps import Taps

B, T, S, N, K, H = 2, 5, 7, 6, 3, 4
G = N // K
SCALE = 0.61  # no power of H, so that a backend that ignores it is caught
LANES: list[tuple[Backend, str]] = [
    ("xla", "float64"),
    ("xla", "float32"),
    ("xla", "bfloat16"),
    ("blockwise", "float64"),
    ("blockwise", "float32"),
    ("blockwise", "bfloat16"),
    ("dot_product", "float32"),
    ("dot_product", "bfloat16"),
]
# Unit roundoff, times the few roundings that an output of a convex combination sees.
BOUND = {"float64": 2.0**-53 * 64, "float32": 2.0**-24 * 64, "bfloat16": 2.0**-8 * 4}

RNG = np.random.default_rng(0)
Q, KEYS, V = (
    RNG.standard_normal(shape) * 1.5 for shape in [(B, T, N, H), (B, S, K, H), (B, S, K, H)]
)
MASK = RNG.random((B, T, S)) < 0.5
MASK[0, 3] = MASK[1, 0] = False  # rows that see nothing
MASK[0, 0] = np.arange(S) == 6  # a row that sees one key


def numpy_attention(q: Any, k: Any, v: Any, mask: Any, kv_of: Any = lambda n: n // G) -> np.ndarray:
    """Return the context [B T N H] in float64, cell by cell."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(*q.shape[:3]):
        keys = np.flatnonzero(mask[b, t])
        if len(keys):
            scores = k[b, keys, kv_of(n)] @ q[b, t, n] * SCALE
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, keys, kv_of(n)]
    return out


@functools.partial(jax.jit, static_argnames="backend")
def run(q: Any, k: Any, v: Any, mask: Any, backend: Backend) -> jax.Array:
    return attend(q, k, v, mask, scale=SCALE, backend=backend)


def cast(dtype: str, *arrays: Any) -> list[jax.Array]:
    return [jnp.asarray(a, jnp.dtype(dtype)) for a in arrays]


@pytest.mark.parametrize(("backend", "dtype"), LANES)
def test_equals_numpy_and_empty_rows_are_exactly_zero(backend: Backend, dtype: str) -> None:
    q, k, v = cast(dtype, Q, KEYS, V)
    found = np.asarray(run(q, k, v, jnp.asarray(MASK), backend))
    assert found.dtype == jnp.dtype(dtype)
    expected = numpy_attention(q, k, v, MASK)
    assert np.abs(found - expected).max() <= BOUND[dtype] * np.abs(V).max()
    assert not found[~MASK.any(-1)].any()
    # Negative controls: one cell of the mask, and kv heads tiled where they are to be repeated.
    flipped = MASK.copy()
    flipped[0, 1, 2] ^= True
    tiled = numpy_attention(q, k, v, MASK, kv_of=lambda n: n % K)
    for wrong in (numpy_attention(q, k, v, flipped), tiled):
        assert np.abs(found - wrong).max() > 4 * BOUND[dtype] * np.abs(V).max()


def test_taps_of_the_reference() -> None:
    taps = Taps()
    q, k, v = cast("float64", Q, KEYS, V)
    out = attend(q, k, v, jnp.asarray(MASK), scale=SCALE, tap=taps)
    seen = taps.recorded()
    assert list(seen) == ["attn_scores", "attn_probs", "attn_context"]
    assert seen["attn_scores"].shape == seen["attn_probs"].shape == (B, N, T, S)
    expected = np.einsum("btnh,bsnh->bnts", Q, np.repeat(KEYS, G, axis=2)) * SCALE
    np.testing.assert_allclose(seen["attn_scores"], expected, rtol=0, atol=1e-14 * 20)
    np.testing.assert_array_equal(seen["attn_probs"] > 0, np.repeat(MASK[:, None], N, axis=1))
    np.testing.assert_array_equal(seen["attn_context"], out)


@pytest.mark.parametrize(("backend", "dtype"), [("xla", "float64"), ("dot_product", "float32")])
def test_gradients_are_finite_and_nothing_flows_through_an_empty_row(
    backend: Backend, dtype: str
) -> None:
    def loss(q: Any, k: Any, v: Any) -> jax.Array:
        return jnp.sum(jnp.square(attend(q, k, v, mask, scale=SCALE, backend=backend)))

    q, k, v = cast(dtype, Q, KEYS, V)
    mask = jnp.asarray(MASK)
    for name, grad in zip("qkv", jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v), strict=True):
        assert np.isfinite(grad).all(), name
        assert np.abs(grad).max() > 0.01, name
        if name == "q":
            assert not np.asarray(grad)[~MASK.any(-1)].any()


def test_adding_minus_infinity_would_break_the_gradient() -> None:
    """Negative control of the test above: the trap that `attend` is written around."""

    def naive(scores: jax.Array) -> jax.Array:
        probs = jax.nn.softmax(scores + jnp.where(jnp.asarray(MASK[0]), 0.0, -jnp.inf), axis=-1)
        live = jnp.asarray(MASK[0]).any(-1, keepdims=True)
        return jnp.sum(jnp.square(jnp.where(live, probs, 0.0)))

    assert np.isnan(jax.grad(naive)(jnp.ones((T, S)))).any()


@pytest.mark.parametrize(("backend", "dtype"), LANES)
def test_hidden_keys_cannot_move_an_output_to_the_bit(backend: Backend, dtype: str) -> None:
    q, k, v = cast(dtype, Q, KEYS, V)
    mask = jnp.asarray(MASK).at[:, :, 4].set(False)
    before = run(q, k, v, mask, backend)
    after = run(q, k.at[:, 4].set(999.0), v.at[:, 4].set(-777.0), mask, backend)
    np.testing.assert_array_equal(before, after)
    # Negative control: as soon as one row may see key 4, that row moves and no other.
    opened = mask.at[1, 2, 4].set(True)
    moved = run(q, k.at[:, 4].set(0.5), v.at[:, 4].set(-777.0), opened, backend) != before
    rows = np.argwhere(np.asarray(moved).any((-1, -2)))
    assert rows.tolist() == [[1, 2]]


SQUARE = RNG.standard_normal((3, B, 6, N, H))


def bound_masks() -> dict[str, BoundMask]:
    index = jnp.broadcast_to(jnp.arange(6)[None], (B, 6))
    rows = Tokens.contiguous(jnp.array([6, 4]), 6)
    left = Tokens(jnp.maximum(index - 2, 0), index >= 2)
    packed = Tokens(index % 3, index >= 0, index // 3)
    spec = causal() & padding()
    return {
        "causal, right-padded": spec.bind(rows, rows),
        "window": (spec & window(3)).bind(rows, rows),
        "left-padded": spec.bind(left, left),
        "left-padded, self": spec.bind(left, left, empty_row="self"),
        "packed": (causal() & segments()).bind(packed, packed),
        "explicit": explicit(MASK[:, :1, :6]).bind(
            Tokens(index[:, :1], index[:, :1] >= 0), Tokens(index, index >= 0)
        ),
    }


@pytest.mark.parametrize("name", bound_masks())
def test_a_bound_mask_says_the_same_to_every_backend(name: str) -> None:
    """Kernels are told causality, lengths and windows by name: same result as the dense mask."""
    mask = bound_masks()[name]
    queries = mask.q.shape[1]
    q, k, v = cast("float32", SQUARE[0][:, :queries], SQUARE[1][:, :, :K], SQUARE[2][:, :, :K])
    expected = numpy_attention(q, k, v, np.asarray(mask.to_bool()))
    for backend in ("xla", "dot_product"):
        for form in (mask, mask.to_bool()):
            found = attend(q, k, v, form, scale=SCALE, backend=backend)
            assert np.abs(np.asarray(found) - expected).max() < BOUND["float32"] * 4


def test_the_kernel_gets_no_dense_mask_where_it_can_take_the_structure() -> None:
    masks = bound_masks()
    assert not masks["window"].kernel_arguments().dense
    assert masks["left-padded"].kernel_arguments().dense


Wrong = tuple[dict[str, Any], str]
SHAPES: dict[str, Wrong] = {
    "mask without batch": ({"mask": MASK[0]}, r"expected bool \(2, 5, 7\) = \(B, T, S\)"),
    "mask of another length": ({"mask": MASK[:, :, :4]}, r"bool \(2, 5, 4\), expected"),
    "0/1 mask": ({"mask": MASK.astype(np.int32)}, "int32.*expected bool"),
    "0/-inf mask": ({"mask": np.where(MASK, 0.0, -np.inf)}, "float64.*expected bool"),
    "heads": ({"k": KEYS[:, :, :1].repeat(4, 2), "v": V[:, :, :1].repeat(4, 2)}, "K dividing N"),
    "keys against values": ({"v": V[:, :3]}, r"expected q \(B, T, N, H\)"),
    "dtypes": ({"k": KEYS.astype(np.float32)}, "q float64, k float32, v float64: expected one"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_and_dtypes_that_do_not_fit(case: str) -> None:
    changes, message = SHAPES[case]
    given = {"q": Q, "k": KEYS, "v": V, "mask": MASK} | changes
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    # Past the type checker of the tests, as a user would meet it.
    unchecked = getattr(attend, "__wrapped__", attend)
    with pytest.raises(InputError, match=message):
        unchecked(**arrays, scale=SCALE)


def test_backends_say_what_stands_in_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(jax.nn, "dot_product_attention", never)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")

    def refusal(backend: Any, dtype: str) -> str:
        with pytest.raises(InputError) as error:
            attend(*cast(dtype, Q, KEYS, V), jnp.asarray(MASK), scale=SCALE, backend=backend)
        return str(error.value)

    assert "JAX runs on cpu, expected gpu; use xla" in refusal("cudnn", "bfloat16")
    assert "softmax in float32; use xla" in refusal("dot_product", "float64")
    assert "does not support it on cpu" in refusal("dot_product", "float16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    text = refusal("cudnn", "float32")
    assert "dtype float32, expected one of bfloat16, float16; give dtype='bf16'" in text
    assert "head_dim 4, expected a multiple of 8" in text
    assert "JAX runs on" not in text
    # Control: what it could do is let through to the kernel.
    wide = [jnp.zeros((*x.shape[:-1], 8), jnp.bfloat16) for x in (Q, KEYS, V)]
    with pytest.raises(AssertionError, match="the kernel was called"):
        attend(*wide, jnp.asarray(MASK), scale=SCALE, backend="cudnn")


def test_an_unknown_backend_is_refused_by_name() -> None:
    unchecked: Any = getattr(attend, "__wrapped__", attend)
    with pytest.raises(InputError, match=r"attention backend 'flash': expected one of \('xla'"):
        unchecked(*cast("float32", Q, KEYS, V), jnp.asarray(MASK), scale=SCALE, backend="flash")


def test_dot_product_attention_is_left_out_of_float64_for_a_reason() -> None:
    """The library's own softmax is float32, far from float64's noise."""
    q, k, v = cast("float64", Q, KEYS, V)
    mask = jnp.asarray(MASK)[:, None]
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=SCALE)
    live = MASK.any(-1)
    expected = numpy_attention(q, k, v, MASK)
    assert np.abs(np.asarray(theirs) - expected)[live].max() > 100 * BOUND["float64"]
    # And the trap that makes `attend` set empty rows to zero: theirs get the mean of all values.
    mean = np.repeat(V.mean(axis=1, keepdims=True), G, axis=2)
    np.testing.assert_allclose(np.asarray(theirs)[0, 3], mean[0, 0], rtol=1e-6)
