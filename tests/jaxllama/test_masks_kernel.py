"""Kernel arguments say exactly what the mask says, or a dense mask is given; nothing is guessed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_llama import build

from jaxllama import attention
from jaxllama.generate import generate
from jaxllama.masks import (
    KernelArguments,
    Tokens,
    causal,
    explicit,
    index,
    padding,
    segments,
    window,
)

N, K, H = 6, 2, 8


def contiguous(lengths, size):
    return Tokens.contiguous(np.array(lengths), size)


def placed(positions, valid=None, documents=None):
    positions = np.array(positions, np.int32)
    valid = np.ones(positions.shape, bool) if valid is None else np.array(valid, bool)
    return Tokens(positions, valid, None if documents is None else np.array(documents, np.int32))


def meaning(arguments: KernelArguments, t: int, s: int, batch: int) -> np.ndarray:
    """Read kernel arguments as jax.nn.dot_product_attention documents them, cell by cell."""
    seen = np.zeros((batch, t, s), bool)
    for b in range(batch):
        for i in range(t):
            for j in range(s):
                left, right = arguments.local_window_size or (s, s)
                lengths = arguments.key_value_seq_lengths
                seen[b, i, j] = (
                    bool(arguments.live[b, i])
                    and (arguments.keys is None or j < arguments.keys)
                    and (not arguments.is_causal or j <= i)
                    and i - left <= j <= i + right
                    and (lengths is None or j < int(lengths[b]))
                )
    return seen


SHIFTED = np.arange(5)[None] + 100
STRUCTURED = {
    "causal": (causal(), contiguous([5], 5), contiguous([5], 5)),
    "ragged": (causal() & padding(), contiguous([5, 3], 5), contiguous([5, 3], 5)),
    "an empty row": (causal() & padding(), contiguous([5, 0], 5), contiguous([5, 0], 5)),
    "window": (causal() & padding() & window(2), contiguous([5, 2], 5), contiguous([5, 2], 5)),
    "two windows": (window(4) & causal() & window(3), contiguous([5], 5), contiguous([5], 5)),
    "padding alone": (padding(), contiguous([4, 1], 4), contiguous([3, 6], 7)),
    "prefill into a cache": (causal() & padding(), contiguous([5, 3], 5), contiguous([5, 3], 7)),
    "decode from a cache": (causal() & padding(), placed([[4], [2]]), contiguous([5, 3], 7)),
    "decode before the last key": (causal() & padding(), placed([[1]]), contiguous([5], 7)),
    "decode before the first key": (causal() & padding(), placed([[-1]]), contiguous([5], 7)),
    "another origin": (causal() & padding(), placed(SHIFTED), placed(SHIFTED)),
    "one document": (
        causal() & segments(),
        placed([[0, 1, 2]], documents=[[3, 3, 3]]),
        placed([[0, 1, 2]], documents=[[3, 3, 3]]),
    ),
    "pads at odd positions": (
        causal() & padding(),
        placed([[0, 1, 2, 3]]),
        placed([[0, 1, 2, 0]], [[True, True, True, False]]),
    ),
    "by index": (causal(align="top_left"), placed([[9, 4, 7]]), placed([[1, 1, 1]])),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_arguments_mean_the_same(name):
    spec, q, k = STRUCTURED[name]
    bound = spec.bind(q, k)
    arguments = bound.kernel_arguments()
    assert not arguments.dense
    dense = np.asarray(bound.to_bool())
    np.testing.assert_array_equal(meaning(arguments, q.shape[1], k.shape[1], q.shape[0]), dense)
    np.testing.assert_array_equal(arguments.live, dense.any(-1))
    np.testing.assert_array_equal(bound.live(), dense.any(-1))


RUN = ("ragged", "an empty row", "window", "prefill into a cache", "decode from a cache")


@pytest.mark.parametrize("name", RUN)
def test_attention_gives_the_same_with_structure_as_with_the_dense_mask(name):
    spec, q, k = STRUCTURED[name]
    bound = spec.bind(q, k)
    (batch, t), s = q.shape, k.shape[1]
    rng = np.random.default_rng(5)
    q_, k_, v_ = (
        jnp.asarray(rng.normal(size=shape) * 2, jnp.float32)
        for shape in ((batch, t, N, H), (batch, s, K, H), (batch, s, K, H))
    )
    outputs = [
        np.asarray(attention.attend(q_, k_, v_, mask, scale=H**-0.5, backend=backend))
        for mask, backend in (
            (bound, "dot_product"),
            (bound.to_bool(), "dot_product"),
            (bound.to_bool(), "xla"),
        )
    ]
    # A score is a sum of H products; an error of d in it moves a softmax-weighted mean by at most
    # 2 d max|v|, and the mean itself is a sum of S products. Both sides of a comparison may err.
    unit = 2.0**-24
    products = jnp.einsum("btkgh,bskh->btkgs", abs(q_).reshape(batch, t, K, N // K, H), abs(k_))
    score_error = (H + 2) * unit * float(products.max()) * H**-0.5
    limit = 2 * (2 * score_error + (s + 4) * unit) * np.abs(v_).max()
    assert np.abs(outputs[0] - outputs[1]).max() <= limit
    assert np.abs(outputs[0] - outputs[2]).max() <= limit
    dead = ~np.asarray(bound.live())
    assert (outputs[0][dead] == 0).all()


LEFT = placed([[0, 0, 1, 2]], [[False, True, True, True]])
DENSE = {
    "left padding": (causal() & padding(), LEFT, LEFT),
    "a hole": (padding(), LEFT, placed([[0, 1, 2]], [[True, False, True]])),
    "positions jump": (causal(), placed([[0, 1, 5]]), placed([[0, 1, 5]])),
    "queries start later": (causal(), placed([[2, 3]]), placed([[0, 1, 2, 3]])),
    "a pad query's position": (
        causal() & padding(),
        placed([[0, 1, 0]], [[True, True, False]]),
        placed([[0, 1, 0]], [[True, True, False]]),
    ),
    "two documents": (
        causal(),
        placed([[0, 1, 0]], documents=[[0, 0, 1]]),
        placed([[0, 1, 0]], documents=[[0, 0, 1]]),
    ),
    "a window that looks ahead": (window(2), contiguous([4], 4), contiguous([4], 4)),
    "a window in decode": (causal() & window(2), placed([[3]]), contiguous([4], 4)),
    "more queries than keys": (causal(), contiguous([5], 5), contiguous([3], 3)),
    "by index, T != S": (causal(align="bottom_right"), placed([[2, 3]]), contiguous([4], 4)),
    "or": (causal() | index(0), contiguous([4], 4), contiguous([4], 4)),
    "not": (~causal(), contiguous([4], 4), contiguous([4], 4)),
    "explicit": (causal() & explicit(np.eye(4, dtype=bool)), *[contiguous([4], 4)] * 2),
}


@pytest.mark.parametrize("name", DENSE)
def test_what_a_kernel_cannot_say_stays_dense(name):
    spec, q, k = DENSE[name]
    bound = spec.bind(q, k)
    arguments = bound.kernel_arguments()
    np.testing.assert_array_equal(arguments.mask, bound.to_bool())
    assert arguments.as_dict()["mask"].shape == (1, 1, q.shape[1], k.shape[1])
    assert not arguments.is_causal
    assert arguments.key_value_seq_lengths is arguments.local_window_size is None


def test_empty_row_self_stays_dense():
    tokens = contiguous([4, 0], 4)
    assert (causal() & padding()).bind(tokens, tokens, "self").kernel_arguments().dense


ATOMS = st.lists(
    st.sampled_from([causal(), padding(), window(2), causal(align="bottom_right")]),
    min_size=1,
    max_size=3,
)
ROWS = st.lists(st.sampled_from([-1, 0, 1, 2, 3]), min_size=3, max_size=3)


@given(ATOMS, st.integers(0, 3), st.integers(0, 4), st.booleans(), ROWS)
def test_whatever_is_structured_is_exact(atoms, q_length, k_length, decode, moved):
    """Positions a little off, lengths that disagree, one query or three: exact, or dense."""
    spec = atoms[0]
    for atom in atoms[1:]:
        spec = spec & atom
    k = contiguous([k_length], 4)
    q = contiguous([q_length], 3)
    if any(moved):
        q = placed([moved], [[True] * 3])
    if decode:
        q = placed([[moved[0]]])
    bound = spec.bind(q, k)
    arguments = bound.kernel_arguments()
    if not arguments.dense:
        said = meaning(arguments, q.shape[1], 4, 1)
        np.testing.assert_array_equal(said, np.asarray(bound.to_bool()))


def test_structure_is_known_under_jit_where_it_was_promised():
    kept = []

    @jax.jit
    def prefill_and_decode(lengths, position):
        keys = Tokens.contiguous(lengths, 7)
        queries = Tokens.contiguous(lengths, 5)
        one = Tokens(position[:, None], jnp.ones((2, 1), bool))
        rule = causal() & padding()
        found = [rule.bind(queries, keys).kernel_arguments(), rule.bind(one, keys)]
        found[1] = found[1].kernel_arguments()
        kept.extend(a.dense for a in found)
        return found

    prefill, decode = prefill_and_decode(np.array([5, 3]), np.array([4, 1]))
    assert kept == [False, False]
    assert (prefill.is_causal, prefill.keys, decode.is_causal) == (True, 5, False)
    assert prefill.key_value_seq_lengths.tolist() == [5, 3]
    assert decode.key_value_seq_lengths.tolist() == [5, 2]

    def unpromised(positions):
        tokens = Tokens(positions, jnp.ones((1, 4), bool))
        return causal().bind(tokens, tokens).kernel_arguments()

    assert jax.jit(unpromised)(np.arange(4)[None]).dense


def sizes(jaxpr):
    """Yield the size of every array made anywhere in a traced program."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape, dtype=np.int64))
        for inner in jax.tree_util.tree_leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def largest_array_of_cudnn_path(monkeypatch, spec, t, s):
    """Trace attention on cuDNN's kernel as on a machine that has it; the kernel is not run."""
    fused = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{fused}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr("jaxllama.attention.backends.check_backend", lambda *_: None)
    bound = spec.bind(contiguous([t], t), contiguous([t], s))
    q, k = (jax.ShapeDtypeStruct((1, n, h, H), jnp.bfloat16) for n, h in ((t, N), (s, K)))

    def run(q, k, v, bound):
        return attention.attend(q, k, v, bound, scale=H**-0.5, backend="cudnn")

    traced = jax.make_jaxpr(run)(q, k, k, bound)
    assert traced.out_avals[0].shape == (1, t, N, H)
    return max(sizes(traced.jaxpr))


@pytest.mark.parametrize("capacity", [32768, 40960])
def test_a_32k_context_never_makes_a_t_by_s_array(monkeypatch, capacity):
    rule = causal() & padding() & window(4096)
    largest = largest_array_of_cudnn_path(monkeypatch, rule, 32768, capacity)
    assert largest <= capacity * N * H


def test_a_32k_mask_that_no_kernel_can_say_is_seen_to_be_dense(monkeypatch):
    rule = (causal() | index(0)) & padding()
    largest = largest_array_of_cudnn_path(monkeypatch, rule, 32768, 32768)
    assert largest >= 32768 * 32768


def test_a_fresh_prompt_is_prefilled_by_kernel_arguments(monkeypatch):
    """Generation on a kernel backend tells it causality and lengths, and says the same text."""
    calls = []
    real = jax.nn.dot_product_attention

    def spy(q, k, v, **said):
        calls.append((q.shape[1], k.shape[1], said["is_causal"], said["mask"] is None))
        return real(q, k, v, **said)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    prompts = [[5, 6, 7, 8, 9], [11, 12]]
    texts = []
    for backend in ("dot_product", "xla"):
        model = build(dtype="float32", backend=backend)
        found = generate(model, prompts, max_new_tokens=4, eos_ids=())
        texts.append(found.rows())
    prefill, decode = sorted(calls, reverse=True)
    assert prefill[0] == prefill[1]
    assert prefill[2:] == (True, True)
    assert decode[0] == 1
    assert texts[0] == texts[1]
