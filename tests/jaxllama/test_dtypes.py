"""Dtypes: what is accepted, what is refused, and the rule for wider arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.dtypes import FLOATS, checked_float, widened
from jaxllama.errors import InputError


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_accepted(name: str) -> None:
    assert checked_float(name) == jnp.dtype(name)


@pytest.mark.parametrize("wrong", ["int32", "bool", "complex64", "float8_e4m3fn"])
def test_others_are_refused(wrong: str) -> None:
    with pytest.raises(InputError, match=rf"param_dtype {wrong}: expected one of float64"):
        checked_float(wrong, "param_dtype")


def test_float64_is_refused_where_jax_would_cut_it() -> None:
    with jax.enable_x64(False):
        assert checked_float("float32") == np.float32
        with pytest.raises(InputError, match="jax_enable_x64"):
            checked_float("float64")


def test_widened_is_at_least_float32() -> None:
    wider = {"float16": "float32", "bfloat16": "float32", "float32": "float32"}
    for dtype, wide in {**wider, "float64": "float64"}.items():
        assert widened(dtype) == np.dtype(wide)
