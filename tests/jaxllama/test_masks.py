"""Rules mean what a plain loop over cells says, obey the laws of logic, and refuse casts."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import contiguous

from jaxllama.errors import InputError
from jaxllama.masks import (
    Tokens,
    causal,
    chunked,
    explicit,
    index,
    padding,
    predicate,
    prefix,
    segments,
    window,
)
from jaxllama.masks.bound import bind

B, T, S = 2, 3, 5
GIVEN = np.random.default_rng(7).random((B, T, S)) < 0.6


def even_key(cells):
    return cells.k_position % 2 == 0


def loop(spec, q, k):
    """Every rule again, as a person would check one cell: (rule's text) -> answer."""

    def cell(b, i, j):
        qp, kp = int(q.positions[b, i]), int(k.positions[b, j])
        same = q.segments is None or q.segments[b, i] == k.segments[b, j]
        answers = {
            "causal()": same and kp <= qp,
            'causal(align="top_left")': j <= i,
            'causal(align="bottom_right")': T - 1 - i <= S - 1 - j,
            "padding()": bool(k.valid[b, j]),
            "segments()": same,
            "window(2)": same and qp - kp <= 1,
            "prefix(3)": same and kp in (0, 1, 2),
            "chunked(2)": same and qp - qp % 2 <= kp < qp - qp % 2 + 2,
            "index(0, 3)": j == 0 or j == 3,
            "explicit(2x3x5)": bool(GIVEN[b, i, j]),
            "predicate(even_key)": kp % 2 == 0,
        }

        def value(rule):
            if not rule.parts():
                return answers[str(rule)]
            values = [value(part) for part in rule.parts()]
            kind = type(rule).__name__
            return {"And": all(values), "Or": any(values), "Not": not values[0]}[kind]

        return value(spec)

    rows = [[[cell(b, i, j) for j in range(S)] for i in range(T)] for b in range(B)]
    return np.array(rows)


ATOMS = [
    causal(),
    causal(align="top_left"),
    causal(align="bottom_right"),
    padding(),
    segments(),
    window(2),
    prefix(3),
    chunked(2),
    index(0, 3),
    explicit(GIVEN),
    predicate(even_key),
]
RULES = st.recursive(
    st.sampled_from(ATOMS),
    lambda rules: st.one_of(
        st.tuples(rules, rules).map(lambda pair: pair[0] & pair[1]),
        st.tuples(rules, rules).map(lambda pair: pair[0] | pair[1]),
        rules.map(lambda rule: ~rule),
    ),
    max_leaves=5,
)


def side(size):
    def grid(values):
        row = st.lists(values, min_size=size, max_size=size)
        return st.lists(row, min_size=B, max_size=B)

    return st.builds(
        lambda p, v, s: Tokens(np.array(p, np.int32), np.array(v), np.array(s, np.int32)),
        grid(st.integers(0, 6)),
        grid(st.booleans()),
        grid(st.integers(0, 1)),
    )


few = settings(max_examples=15)


@few
@given(RULES, side(T), side(S))
def test_lowering_equals_a_loop_over_cells(rule, q, k):
    expected = loop(rule, q, k)
    bound = rule.bind(q, k)
    np.testing.assert_array_equal(np.asarray(bound.to_bool()), expected)
    np.testing.assert_array_equal(np.asarray(bound.live()), expected.any(-1))
    part = bound.block([2, 0], [4, 1], xp=np)
    np.testing.assert_array_equal(part, expected[:, [2, 0]][:, :, [4, 1]])


@few
@given(RULES, RULES, RULES, side(T), side(S))
def test_laws_of_logic(a, b, c, q, k):
    def dense(rule):
        return np.asarray(rule.bind(q, k).to_bool()).tolist()

    assert dense(~~a) == dense(a)
    assert dense(~(a & b)) == dense(~a | ~b)
    assert dense(a & b) == dense(b & a)
    assert dense(a & (b | c)) == dense((a & b) | (a & c))
    assert dense((a & b) & c) == dense(a & (b & c))
    assert dense(a | a) == dense(a)


def test_a_wrong_loop_is_noticed():
    q = k = contiguous([5], 5)
    strict = causal() & ~predicate(lambda c: c.k_position == c.q_position)
    assert not np.array_equal(causal().bind(q, k).to_bool(), strict.bind(q, k).to_bool())


@pytest.mark.ill_typed
def test_specs_are_neither_true_nor_false():
    with pytest.raises(TypeError, match="combine with &, \\| and ~"):
        bool(causal())
    with pytest.raises(TypeError, match="would drop a part"):
        causal() and padding()
    with pytest.raises(TypeError, match=r"wrap a bool array in\s+explicit"):
        causal() & np.ones((2, 3), bool)
    with pytest.raises(TypeError, match="explicit"):
        np.ones((2, 3), bool) | causal()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 5), np.float32), "bias == 0"),
        (np.ones((3, 5), np.int64), "array != 0"),
        (jnp.zeros((3, 5), jnp.bfloat16), "bfloat16"),
        ([[True]], "list"),
        (np.ones((2, 1, 3, 5), bool), r"mask\[:, 0\]"),
        (np.ones(5, bool), r"expected \[T, S\]"),
    ],
)
def test_explicit_takes_bool_of_two_or_three_axes_alone(array, said):
    with pytest.raises(InputError, match=said):
        inspect.unwrap(explicit)(array)  # as in production: without the tests' type checks


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: window(0), "at least 1; 1 is the query itself"),
        (lambda: window(True), "expected an integer"),
        (lambda: inspect.unwrap(window)(2.5), "expected an integer"),
        (lambda: chunked(0), "at least 1"),
        (lambda: prefix(-1), "at least 0"),
        (lambda: index(-1), "at least 0"),
        (lambda: inspect.unwrap(causal)(align="middle"), "top_left"),
    ],
)
def test_bad_numbers_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_bind_names_every_problem_at_once():
    rule = segments() & index(9) & explicit(np.ones((4, 4), bool))
    with pytest.raises(InputError) as caught:
        inspect.unwrap(bind)(rule, contiguous([3], 3), contiguous([5, 5], 5), "nothing")
    text = str(caught.value)
    for said in ("batch", "only keys 0 to 4", "(4, 4)", "neither queries nor keys", "'nothing'"):
        assert said in text


def test_tokens_name_every_problem_at_once():
    with pytest.raises(InputError) as caught:
        Tokens(np.zeros(3), np.ones((1, 3), np.int32), np.zeros((1, 2), np.int32))
    text = str(caught.value)
    for said in ("add a batch axis", "valid: dtype int32", "positions: dtype float64", "segments"):
        assert said in text


def test_predicate_must_return_bool_of_three_axes():
    q = contiguous([5], 5)
    with pytest.raises(InputError, match="int32 of rank 3"):
        predicate(lambda c: c.k_position).bind(q, q).to_bool()
    with pytest.raises(InputError, match="rank 2"):
        predicate(lambda c: c.k_valid[0]).bind(q, q).to_bool()


def test_segments_of_one_side_default_to_document_zero():
    q, k = contiguous([3], 3), contiguous([5], 5)
    packed = Tokens(k.positions, k.valid, np.array([[0, 0, 0, 1, 1]], np.int32))
    seen = np.asarray((segments() & padding()).bind(q, packed).to_bool())
    np.testing.assert_array_equal(seen[0], [[True, True, True, False, False]] * 3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_bias_hides_and_never_overflows(dtype):
    q = contiguous([5], 5)
    bound = causal().bind(q, q)
    bias = np.asarray(bound.to_bias(dtype))
    assert bias.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(bias == 0, bound.to_bool())
    score = np.asarray(1000, dtype)
    assert np.isfinite((bias - score).astype(np.float32)).all()
    weights = np.asarray(jax.nn.softmax(jnp.asarray(bias + score).astype(jnp.float32), axis=-1))
    assert (weights[~np.asarray(bound.to_bool())] == 0).all()
    # Negative control: the lowest number itself does overflow in float16.
    with np.errstate(over="ignore"):
        lowest = jnp.finfo(dtype).min - score
    assert np.isfinite(np.float32(lowest)) == (dtype != jnp.float16)


def test_bias_must_be_a_float():
    q = contiguous([5], 5)
    with pytest.raises(InputError, match="to_bool"):
        causal().bind(q, q).to_bias(np.int32)


def test_a_bound_mask_passes_through_jit_and_compiles_once():
    traces = []

    @jax.jit
    def lowered(bound):
        traces.append(1)
        return bound.to_bool(), bound.to_bias(jnp.float32), bound.live()

    rule = (causal() & padding()) | explicit(np.eye(5, dtype=bool))
    for lengths in ([3, 5], [4, 1]):
        tokens = contiguous(lengths, 5)
        bound = rule.bind(tokens, tokens)
        for inside, outside in zip(
            lowered(bound), (bound.to_bool(), bound.to_bias(jnp.float32), bound.live()), strict=True
        ):
            np.testing.assert_array_equal(inside, outside)
    assert len(traces) == 1


def test_tokens_keep_their_promise_through_jit_and_lose_it_when_changed():
    tokens = contiguous([3], 5)
    assert jax.jit(lambda t: t)(tokens).from_zero
    assert not dataclasses.replace(tokens, positions=tokens.positions + 1).from_zero
