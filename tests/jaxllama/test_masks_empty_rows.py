"""Queries that see no key: left empty, shown themselves, or an error, as the caller says."""

import jax
import numpy as np
import pytest
from token_rows import contiguous, without_first

from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal, index, padding


def test_empty_row_zero_leaves_it_empty():
    rule, tokens = without_first()
    bound = rule.bind(tokens, tokens)
    assert np.asarray(bound.live())[0].tolist() == [False, False, True, True, True]
    assert not np.asarray(bound.to_bool())[0, :2].any()


def test_empty_row_self_shows_the_own_key_alone():
    rule, tokens = without_first()
    seen = np.asarray(rule.bind(tokens, tokens, "self").to_bool())[0]
    assert np.argwhere(seen[:2]).tolist() == [[0, 0], [1, 1]]
    np.testing.assert_array_equal(seen[2:], np.asarray(rule.bind(tokens, tokens).to_bool())[0, 2:])


def test_empty_row_self_finds_the_own_key_in_a_cache_by_position():
    keys = contiguous([5], 7)
    queries = Tokens(np.array([[3, 4]], np.int32), np.ones((1, 2), bool))
    bound = (causal() & padding() & ~index(0, 1, 2, 3)).bind(queries, keys, "self")
    assert np.argwhere(np.asarray(bound.to_bool())[0]).tolist() == [[0, 3], [1, 4]]


def test_empty_row_error_names_real_queries_and_spares_pads():
    rule, tokens = without_first()
    with pytest.raises(InputError, match=r"1 real queries see no key.*\(row 0, query 1\)"):
        rule.bind(tokens, tokens, "error")
    (causal() & padding()).bind(tokens, tokens, "error")  # query 0 is a pad: nobody's concern
    empty_row = contiguous([4, 0], 4)
    queries = Tokens(empty_row.positions, np.ones((2, 4), bool))
    with pytest.raises(InputError, match=r"4 real queries.*row 1, query 0"):
        (causal() & padding()).bind(queries, empty_row, "error")


def test_empty_row_error_needs_concrete_values():
    def bound_inside(lengths):
        tokens = Tokens.contiguous(lengths, 4)
        return (causal() & padding()).bind(tokens, tokens, "error").to_bool()

    with pytest.raises(InputError, match="bind outside"):
        jax.jit(bound_inside)(np.array([4]))
