"""Dtypes: what is accepted, what is refused, and the rule for wider arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllama.cache import KVCache
from jaxllama.checkpoint import convert, open_checkpoint, tiny
from jaxllama.checkpoint.load import load_part
from jaxllama.dtypes import FLOATS, SHORT, at_least_float32, checked_float, parse, short_name
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal
from jaxllama.model import Llama


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_accepted(name: str) -> None:
    assert checked_float(name) == jnp.dtype(name)


@pytest.mark.parametrize(("short", "long"), [(s, d.name) for s, d in SHORT.items()])
def test_a_dtype_has_one_meaning_by_all_its_names(short: str, long: str) -> None:
    names = (short, short.upper(), long, SHORT[short], SHORT[short].type, getattr(jnp, long))
    assert {parse(name) for name in names} == {jnp.dtype(long)}
    assert {short_name(name) for name in names} == {short}


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    "wrong", ["int32", "bool", "complex64", "float8_e4m3fn", jnp.int8, "f8", "", None, 3]
)
def test_others_are_refused(wrong: str) -> None:
    said = {"": r"\(nothing\)"}.get(str(wrong), getattr(wrong, "__name__", str(wrong)))
    with pytest.raises(
        InputError, match=rf"^param_dtype {said}: expected one of f64, f32, bf16, f16"
    ):
        checked_float(wrong, "param_dtype")


NAMES = ["f32", "float32", jnp.float32, np.dtype(np.float32)]


@pytest.mark.parametrize("dtype", NAMES)
def test_every_door_takes_every_name(dtype: Any, tmp_path: Path) -> None:
    checkpoint = tiny(num_hidden_layers=1)
    config = checkpoint.config
    model = Llama.from_pretrained(checkpoint, dtype=dtype, param_dtype=dtype)
    tokens = Tokens.contiguous(np.array([2]), 2)
    mask = causal().bind(tokens, tokens)
    found = (
        model.dtype,
        Llama(config, dtype=dtype, rngs=nnx.Rngs(0)).dtype,
        KVCache.empty(config, 1, 4, dtype).dtype,
        mask.to_bias(dtype).dtype,
        load_part(checkpoint, 0, dtype=dtype, param_dtype=dtype).dtype,
        model.generate(np.array([[1]]), max_new_tokens=1, cache_dtype=dtype).cache.dtype,
    )
    assert set(found) == {np.dtype(np.float32)}
    converted = convert(checkpoint, tmp_path / "out", to="hf", dtype=dtype).target
    assert {info.dtype for info in open_checkpoint(converted).tensors.values()} == {
        np.dtype(np.float32)
    }


def test_float64_is_refused_where_jax_would_cut_it() -> None:
    with jax.enable_x64(False):
        assert checked_float("float32") == np.float32
        with pytest.raises(InputError, match="jax_enable_x64"):
            checked_float("float64")


def test_widened_is_at_least_float32() -> None:
    wider = {"float16": "float32", "bfloat16": "float32", "float32": "float32"}
    for dtype, wide in {**wider, "float64": "float64"}.items():
        assert at_least_float32(dtype) == np.dtype(wide)
