"""Messages of many problems: at most a dozen lines, those of one kind being one."""

from __future__ import annotations

import pickle

from jaxllama.errors import InputError, join_problems, summarise


def test_few_are_listed_as_they_are():
    unlike = [f"{chr(97 + i) * 3} went wrong" for i in range(11)]
    assert join_problems("x", unlike).splitlines()[1:] == [f"  - {one}" for one in unlike]


def test_more_than_four_alike_are_one_line_however_few():
    said = join_problems("x", [f"layers.{i}.w: missing" for i in range(5)])
    assert said.splitlines()[1:] == ["  - layers.0.w: missing (and 4 more like it)"]
    assert len(join_problems("x", [f"layers.{i}.w: missing" for i in range(4)]).splitlines()) == 5


def test_like_problems_are_one_line_in_the_order_of_the_first():
    missing = [f"layers.{i}.q.weight: missing, expected shape ({i}, 4)" for i in range(40)]
    odd = ["vocab_size 'x', expected an integer", *(f"b.{i}: dtype int8" for i in range(2))]
    said = join_problems("x", missing + odd)
    assert said.splitlines() == [
        "x: 43 problems",
        f"  - {missing[0]} (and 39 more like it)",
        f"  - {odd[0]}",
        f"  - {odd[1]} (and 1 more like it)",
    ]


def test_unlike_problems_end_in_a_count():
    kinds = [f"{chr(97 + i) * 3} went wrong" for i in range(26)]
    assert summarise(kinds, 5) == [*kinds[:4], "and 22 more"]


def test_a_problem_of_several_lines_is_one():
    nested = join_problems("inner", ["a", "b"])
    assert len(join_problems("outer", [nested] * 2).splitlines()) == 3


def test_both_words_of_an_error():
    error = InputError("pass dtype", command="give --dtype")
    assert (str(error), error.command) == ("pass dtype", "give --dtype")
    assert InputError("same").command == "same"
    assert str(pickle.loads(pickle.dumps(error))) == "pass dtype"
