"""The same facts said in several ways: rows and heads in one axis, numbered documents, lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxllama.errors import InputError
from jaxllama.masks import causal
from parity.lint import Case, lint
from parity.lint.samples import LEFT_PADDED, PACKED, packed, tril

HEADS = 3
ROWS = tril()[None] & LEFT_PADDED[:, None, :]  # [B, T, S]


def fired(case: Case) -> list[str]:
    return [finding.rule for finding in lint(case).findings]


def case(mask: np.ndarray, **facts: Any) -> Case:
    return Case(**{"mask": mask, "valid": LEFT_PADDED, "empty_row": "zero", **facts})


@pytest.mark.parametrize("facts", [{"layout": "bnts"}, {"heads": HEADS}])
def test_rows_and_heads_in_one_axis_are_taken_apart(facts):
    right = case(np.repeat(ROWS, HEADS, 0), **facts)
    assert right.mask.shape == (2, HEADS, 5, 5)
    assert fired(right) == []


def test_rows_repeated_as_a_whole_are_told_from_rows_repeated_for_their_heads():
    wrong = case(np.tile(ROWS, (HEADS, 1, 1)), heads=HEADS)
    assert fired(wrong) == ["M08"]
    assert "repeat_interleave" in lint(wrong).findings[0].message


def test_a_fault_in_one_head_of_that_axis_is_not_called_a_layout():
    mask = np.repeat(ROWS, HEADS, 0)
    mask[1, 4, 0] = True  # row 0, head 1: padding seen
    (found,) = lint(case(mask, heads=HEADS)).findings
    assert (found.rule, found.place.row, found.place.head) == ("M09", 0, 1)


@pytest.mark.parametrize(
    ("shape", "facts", "said"),
    [
        ((6, 5, 5), {}, "6 is not 1, 2 rows or their product; say what the first axis is by"),
        ((7, 5, 5), {"heads": 3}, "7 is not 1, 2 rows or 3 heads"),
        ((6, 5, 5), {"layout": "bnts", "heads": 4}, "first axis 6, expected 8"),
        ((5, 5, 5), {"layout": "bnts"}, "5 is no multiple of 2 rows"),
        ((3, 5, 5), {"layout": "bts"}, "first axis 3, expected 1 or 2"),
        ((2, 5, 5), {"layout": "nts", "heads": 3}, "first axis 2, expected 1 or 3"),
    ],
)
def test_axes_that_fit_no_reading_are_asked_about(shape, facts, said):
    with pytest.raises(InputError, match=said):
        case(np.ones(shape, bool), **facts)


def test_numbers_above_one_in_the_validity_are_documents():
    numbers = np.where(np.arange(5) < 4, PACKED + 1, 0)  # the last token is padding
    same = numbers[:, :, None] == numbers[:, None, :]
    leaky = (tril()[None] & (numbers > 0)[:, None, :])[:, None]
    given = {"segments": None, "positions": None, "valid": numbers, "empty_row": "zero"}
    assert fired(packed(mask=leaky, **given)) == ["S01"]
    right = packed(mask=leaky & same[:, None], **given)
    assert fired(right) == []
    assert right.valid.dtype == bool
    assert "numbers up to 2: read as documents" in lint(right).notes[0]
    assert right.replace(use="bool").notes == right.notes


@pytest.mark.parametrize(
    ("valid", "facts", "said"),
    [
        (np.where(LEFT_PADDED, 0.0, -1e9), {}, "valid: holds -1000000000.0"),
        (np.where(LEFT_PADDED, 1.0, 0.5), {}, "valid: holds 0.5"),
        (np.where(LEFT_PADDED, 1, -1), {}, "valid: holds -1"),
        (np.where(LEFT_PADDED, 2, 1), {"segments": PACKED}, "other documents than those of"),
        (LEFT_PADDED, {"lengths": np.array([3, 5])}, "both valid and lengths"),
    ],
)
def test_a_validity_that_is_none_is_refused(valid, facts, said):
    with pytest.raises(InputError, match=said):
        case(ROWS[:, None], **{"valid": valid, **facts})


def test_numbers_that_agree_with_the_segments_are_taken():
    assert fired(packed(valid=PACKED + 1)) == []


def test_validity_as_floats_of_zero_and_one_is_taken():
    assert case(ROWS[:, None], valid=LEFT_PADDED.astype(np.float32)).valid.dtype == bool


def test_lengths_stand_for_validity():
    lengths = np.array([3, 5])
    left = case(ROWS[:, None], valid=None, lengths=lengths, padding_side="left")
    assert left.valid.tolist() == LEFT_PADDED.tolist()
    assert fired(left) == []
    right = left.replace(valid=None, lengths=lengths, padding_side="right")
    assert right.valid.tolist() == LEFT_PADDED[:, ::-1].tolist()
    assert "M07" in fired(right)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [([3, 6], "row 1 is said to have 6 real tokens of 5"), ([-1, 5], "row 0 is said to have -1")],
)
def test_lengths_that_do_not_fit_are_refused(lengths, said):
    with pytest.raises(InputError, match=said):
        case(ROWS[:, None], valid=None, lengths=np.array(lengths))


# A ring: six slots, of which positions 6 and 7 have taken those of 0 and 1. The window is six keys.
RING = np.array([[6, 7, 2, 3, 4, 5]])


def ring(seen: np.ndarray, **facts: Any) -> Case:
    given = {"past": 6, "capacity": 6, "window": 6, "slot_positions": RING}
    return Case(mask=seen[None, None], **{**given, **facts})


def seen_in_ring(window: int = 6) -> np.ndarray:
    own = np.array([6, 7])[:, None]
    return (own >= RING) & (own - window < RING)


def test_a_ring_is_read_by_the_positions_of_its_slots():
    report = lint(ring(seen_in_ring()))
    assert report.findings == []
    assert {"C01", "C02", "C04", "M07", "W01"} <= set(report.checked)
    assert {"P01", "S02", "T02"} & set(report.checked) == set()


@pytest.mark.parametrize(
    ("seen", "slots", "rules"),
    [
        (np.ones((2, 6), bool), RING, {"M07"}),  # the first sees the second
        (np.arange(6)[None] < np.array([[1], [2]]), RING, {"C04"}),  # as if slots were in order
        (seen_in_ring(5), RING, {"W01"}),
        (seen_in_ring(), np.where(RING == 2, -1, RING), {"C02"}),
    ],
)
def test_faults_in_a_ring_are_found(seen, slots, rules):
    assert set(fired(ring(seen, slot_positions=slots))) == rules


def test_a_ring_whose_slots_are_not_known_is_not_checked():
    report = lint(ring(seen_in_ring(), slot_positions=None))
    assert report.findings == []
    assert {"C01", "C02", "C04", "M07", "W01"} <= set(report.unchecked)
    assert "positions of its slots" in report.unchecked["M07"][0]


def test_a_cache_of_unknown_length_is_not_checked():
    report = lint(Case(mask=np.arange(7)[None, None, None] < 4, capacity=7))
    assert report.findings == []
    assert "M07" in report.unchecked


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (np.array([[6, 7, 2, 3, 4, 2]]), "position 2 in two slots"),
        (RING[:, :4], "expected integers"),
        (RING * 1.0, "expected integers"),
    ],
)
def test_slots_that_cannot_be_are_refused(slots, said):
    with pytest.raises(InputError, match=said):
        ring(seen_in_ring(), slot_positions=slots)


def test_the_caches_length_says_where_the_query_stands():
    one = np.ones((1, 4), bool)
    facts = {"slot_positions": np.array([[4, 5, 6, 3]]), "past": 5, "capacity": None, "window": 4}
    assert "M07" in fired(ring(one, **facts))  # slot 2 holds what comes after
    assert fired(ring(one, **facts | {"slot_positions": np.array([[4, 5, 2, 3]])})) == []
    with pytest.raises(InputError, match="position 5 is in no slot"):
        ring(one, **facts | {"slot_positions": np.array([[0, 1, 2, 3]])})


def test_numbers_in_a_mask_are_seen_and_noted():
    numbers = np.tri(5, dtype=int)[None, None] * 2
    found = lint(Case(mask=numbers))
    assert found.findings == [] and "all but 0 is read as seen" in found.notes[0]
    assert "M07" in fired(Case(mask=np.full((1, 1, 5, 5), 2)))


@pytest.mark.parametrize("heads", [4, 5])
def test_heads_alone_do_not_tell_rows(heads):
    with pytest.raises(InputError, match=f"12 is not 1, {heads} heads"):
        Case(mask=np.repeat(np.tri(6, dtype=bool)[None], 12, 0), heads=heads)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"heads": 0}, "heads=0: expected at least 1"),
        ({"past": -1}, "past=-1: expected at least 0"),
        ({"capacity": 0}, "capacity=0"),
        ({"score_limit": float("nan")}, "score_limit=nan"),
        ({"scores_dtype": "f8"}, "scores_dtype f8"),
        ({"queries": 99}, "queries=99: the mask"),
    ],
)
def test_numbers_that_cannot_be_are_refused(facts, said):
    with pytest.raises(InputError, match=said):
        case(ROWS[:, None], **facts)


@pytest.mark.parametrize(
    ("facts", "cells"),
    [
        ({"spec": causal(), "queries": 5}, 25),
        ({"spec": causal(), "queries": 5, "capacity": 9}, 45),
        ({"spec": causal(), "lengths": np.array([5, 3]), "queries": 5}, 50),
        ({"mask": ROWS[:, None].repeat(HEADS, 1)}, 2 * HEADS * 25),
    ],
)
def test_tables_beyond_memory_are_refused_before_they_are_made(
    facts, cells, monkeypatch: pytest.MonkeyPatch
):
    needed = 7 * cells
    monkeypatch.setattr("parity.lint.case.free_bytes", lambda: needed)
    Case(**facts)
    monkeypatch.setattr("parity.lint.case.free_bytes", lambda: needed - 1)
    with pytest.raises(InputError, match="memory are free; give at most"):
        Case(**facts)
    monkeypatch.setattr("parity.lint.case.free_bytes", lambda: None)  # cannot be told
    Case(**facts)


def test_queries_that_are_in_no_slot_are_refused():
    with pytest.raises(InputError, match="query 1: position 9 is in no slot"):
        ring(seen_in_ring(), positions=np.array([[7, 9]]))
