from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllama.checkpoint.dtypes import BFLOAT16, Loss, cast, lost
from jaxllama.dtypes import parse
from jaxllama.errors import InputError

# Half-way between two bfloat16 once rounded to float32, above half-way before.
_DOUBLE_ROUNDING = 1 + 2.0**-8 + 2.0**-30


def test_float64_to_bfloat16_rounds_once():
    exact = np.array([_DOUBLE_ROUNDING, -_DOUBLE_ROUNDING])
    assert cast(exact, BFLOAT16).astype(float).tolist() == [1 + 2**-7, -1 - 2**-7]
    by_way_of_float32 = exact.astype(np.float32).astype(BFLOAT16).astype(float)
    assert by_way_of_float32.tolist() == [1, -1], "the trap this guards against"


@given(st.floats(width=64, allow_nan=False, min_value=-1e38, max_value=1e38))
def test_float64_to_bfloat16_is_nearest(value):
    rounded = float(cast(np.array([value]), BFLOAT16)[0])
    bits = int(np.array(rounded, ml_dtypes.bfloat16).view(np.uint16))
    neighbours = np.array([max(bits - 1, 0), bits + 1], np.uint16).view(BFLOAT16).astype(float)
    finite = neighbours[np.isfinite(neighbours)]
    assert abs(rounded - value) <= np.abs(finite - value).min()


def test_special_values_survive():
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e300])
    result = cast(values, BFLOAT16).astype(float)
    assert result[:2].tolist() == [np.inf, -np.inf] and np.isnan(result[2])
    assert np.signbit(result[3:5]).tolist() == [False, True] and result[5] == np.inf


def test_same_dtype_is_no_copy():
    values = np.ones(3, np.float16)
    assert cast(values, np.dtype(np.float16)) is values


def test_lost_counts_and_measures():
    values = np.array([1.0, 1.0 + 2**-9], np.float32)
    relative = 2.0**-9 / np.hypot(1.0, 1.0 + 2.0**-9)
    found = lost(values, cast(values, BFLOAT16))
    assert (found.changed, found.size, found.largest) == (1, 2, 2.0**-9)
    assert found.relative_rms == pytest.approx(relative)
    assert lost(values, values) == Loss(0, 2, 0.0, 0.0)


def test_names():
    assert parse("bf16") == parse("bfloat16") == BFLOAT16
    with pytest.raises(InputError, match="int8"):
        parse("int8")
