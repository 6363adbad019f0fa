"""Annotations are checked at run time, on the first calls of each function."""

from __future__ import annotations

from dataclasses import dataclass

import jaxtyping
import numpy as np
import pytest
from jaxtyping import Float
from shape_check import CHECKED_CALLS, check_shapes

from jaxllama import loss, rope


def rows(x: Float[np.ndarray, "A B"], y: Float[np.ndarray, "A"]) -> int:
    return len(x) + len(y)


def test_a_wrong_shape_is_refused_on_the_first_calls() -> None:
    checked = jaxtyping.jaxtyped(rows, typechecker=check_shapes)
    wide, wrong = np.zeros((2, 3)), np.zeros(3)
    for _ in range(CHECKED_CALLS - 1):
        assert checked(wide, np.zeros(2)) == 4
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(wide, wrong)
    assert checked(wide, wrong) == 5  # is let be from here on


def test_dataclasses_are_checked_too() -> None:
    @jaxtyping.jaxtyped(typechecker=check_shapes)
    @dataclass
    class Pair:
        number: int

    with pytest.raises(jaxtyping.TypeCheckError):
        Pair("one")  # type: ignore[arg-type]


def test_both_packages_are_decorated() -> None:
    for function in (rope.apply_rope, loss.next_token_loss):
        assert hasattr(function, "__wrapped__")
