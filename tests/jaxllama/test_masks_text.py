"""Masks for people: drawn whole or in blocks, and explained cell by cell."""

import jax
import numpy as np
import pytest
from token_rows import contiguous, without_first

from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal, explicit, index, padding, prefix, segments, window


def test_drawing():
    valid = np.array([[False, True, True, True]])
    tokens = Tokens(np.array([[0, 0, 1, 2]], np.int32), valid)
    bound = (causal() & padding() & window(2) & ~index(1)).bind(tokens, tokens)
    assert str(bound).splitlines() == [
        "causal() & padding() & window(2) & ~index(1)   1 x 4 queries x 4 keys   empty row: zero",
        "# seen  + partly  . hidden  ! a query that sees nothing",
        "",
        "row 0",
        "       0123",
        "valid  -vvv",
        "  q 0  !!!!  not valid",
        "  q 1  !!!!",
        "  q 2  ..#.",
        "  q 3  ..##",
    ]


def test_drawing_in_blocks_loses_no_lone_cell():
    tokens = contiguous([128], 128)
    lone = np.zeros((128, 128), bool)
    lone[:, 0] = True
    lone[37, 101] = True
    text = explicit(lone).bind(tokens, tokens).draw()
    (line,) = (line for line in text.splitlines() if line.startswith(" q 36 "))
    assert line.split()[-1] == "+" + "." * 49 + "+" + "." * 13
    assert "4 queries x 2 keys; every cell" in text


def test_drawing_a_huge_mask_samples():
    tokens = contiguous([8192], 8192)
    text = causal().bind(tokens, tokens).draw()
    assert "5 x 5 cells of each" in text
    assert text.splitlines()[-1].split()[-1] == "#" * 62 + "++"


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("length", [1, 5, 6, 40, 64, 65, 3000])
@pytest.mark.parametrize("pads", [False, True])
def test_what_is_printed_is_under_12_lines(rows, length, pads):
    tokens = contiguous([length - (pads and length > 1)] * rows, length)
    bound = causal().bind(tokens, tokens)
    lines = str(bound).splitlines()
    assert len(lines) < 12 and max(map(len, lines)) < 90
    assert ("mask.draw() draws more" in lines[-1]) == (rows > 1 or length > 5)
    assert "row 0" in lines and "row 1" not in lines
    # Control: the whole picture is longer.
    assert length < 6 or rows == 1 or len(bound.draw().splitlines()) > 12


def test_a_drawing_is_as_narrow_as_asked():
    tokens = contiguous([200], 200)
    bound = causal().bind(tokens, tokens)
    picture = [line for line in bound.draw(40).splitlines() if line.lstrip().startswith("q ")]
    assert len(picture) == 32 and set(map(len, picture)) == {40}
    assert len(bound.draw(1).splitlines()[-1]) == 24
    assert len(bound.draw().splitlines()[-1]) == 64 + 7


def test_drawing_while_traced_says_so():
    texts = []
    tokens = contiguous([4], 4)
    jax.eval_shape(lambda b: texts.append(str(b)), causal().bind(tokens, tokens))
    assert "being traced" in texts[0]


def test_drawing_stops_after_four_rows():
    tokens = contiguous([3] * 6, 3)
    text = causal().bind(tokens, tokens).draw()
    assert "row 3" in text
    assert "row 4" not in text
    assert "(2 more rows)" in text


def test_explain_names_the_deciding_parts():
    tokens = contiguous([6], 6)
    bound = ((causal() | prefix(2)) & padding() & ~index(3) & window(4)).bind(tokens, tokens)
    assert bound.explain(0, 1).splitlines() == [
        "row 0, query 0 (position 0), key 1 (position 1): shown by prefix(2), padding(), index(3),"
        " window(4)",
        "  (causal() | prefix(2)) & padding() & ~index(3) & window(4): shows",
        "    causal() | prefix(2): shows",
        "      causal(): hides",
        "      prefix(2): shows",
        "    padding(): shows",
        "    ~index(3): shows",
        "      index(3): hides",
        "    window(4): shows",
    ]
    assert bound.explain(5, 1).splitlines()[0].endswith("hidden by window(4)")
    assert bound.explain(2, 4).splitlines()[0].endswith("hidden by causal(), prefix(2)")
    assert bound.explain(5, 3).splitlines()[0].endswith("hidden by index(3)")


def test_explain_tells_of_the_policy_and_of_segments():
    rule, tokens = without_first()
    assert 'empty_row="self"' in rule.bind(tokens, tokens, "self").explain(1, 1)
    packed = Tokens(tokens.positions, tokens.valid, np.array([[0, 0, 0, 1, 1]], np.int32))
    said = (segments() & causal()).bind(packed, packed).explain(4, 0)
    assert "query 4 (position 3, segment 1), key 0 (position 0, segment 0, not valid)" in said
    with pytest.raises(InputError, match=r"query 5: expected 0 to 4; key -1"):
        rule.bind(tokens, tokens).explain(5, -1)
