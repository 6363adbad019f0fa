"""Ideas from mask tutorials, written anew: each gets the right diagnosis, and no other."""

import numpy as np
import pytest

from parity.lint import Case, lint

S = 6
IDS = np.arange(S * S).reshape(S, S) + 10


def columns_off(hidden, causal):
    """A mask of ones, with chosen columns set to -inf."""
    mask = np.ones((S, S), np.float32)
    mask[:, hidden] = -np.inf
    if causal:
        mask[np.triu_indices(S, 1)] = -np.inf
    return Case(mask=mask[None, None])


def triangle_of_ones():
    """Ones below the diagonal and -inf above."""
    mask = np.tril(np.ones((S, S), np.float32))
    mask[mask == 0] = -np.inf
    return Case(mask=mask[None, None])


def padding_from_ids(rows):
    """0 on tokens and -inf on the padding id, [B, S]; the same id also ends the texts."""
    ids = IDS[:rows].copy()
    ids[0, 2] = ids[0, 4:] = ids[1, 5] = 2
    bias = np.where(ids == 2, -np.inf, 0).astype(np.float32)
    return Case(mask=bias, ids=ids, pad_id=2, eos_ids=(2,))


def expanded_zero_one():
    """A 0/1 padding mask of one text, repeated to every query, to be added."""
    keep = np.array([1, 1, 1, 1, 0, 0], np.float32)
    return Case(mask=np.broadcast_to(keep, (1, 1, S, S)).copy())


@pytest.mark.parametrize(
    ("case", "diagnosis"),
    [
        (columns_off([1, 3], causal=False), {"M10", "M07"}),
        (columns_off([0], causal=True), {"M10", "M05"}),
        (triangle_of_ones(), {"M10"}),
        (padding_from_ids(S), {"M08", "T01"}),
        (expanded_zero_one(), {"M01", "M07"}),
    ],
)
def test_diagnosis(case, diagnosis):
    assert {finding.rule for finding in lint(case).findings} == diagnosis


def test_the_empty_row_is_named():
    (found,) = [f for f in lint(columns_off([0], causal=True)).findings if f.rule == "M05"]
    assert (found.place.query, found.count, found.severity) == (0, 1, "error")


@pytest.mark.parametrize(("rows", "said"), [(S, "silently, since B = T = 6"), (3, "fails here")])
def test_a_wrong_rank_is_silent_only_where_the_sizes_agree(rows, said):
    (found,) = [f for f in lint(padding_from_ids(rows)).findings if f.rule == "M08"]
    assert said in found.message
    assert f"({rows}, 1, 1, {S})" in found.expected


def test_the_mended_snippets_are_clean():
    seen = np.tri(S, dtype=bool)
    bias = np.where(seen, 0, -np.inf).astype(np.float32)[None, None]
    assert lint(Case(mask=bias)).findings == []
    lengths = np.array([4, 6, 1, 2, 3, 5])
    valid = np.arange(S) < lengths[:, None]
    both = seen & valid[:, None, :]
    assert lint(Case(mask=both[:, None], valid=valid)).findings == []
