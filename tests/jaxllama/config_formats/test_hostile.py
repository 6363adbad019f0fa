"""Whatever stands in a field of a metadata file, the answer is a config or a ConfigError."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from configs import CONFIG, LINEAR, META_SHAPED
from hypothesis import given
from hypothesis import strategies as st

from jaxllama.config import LlamaConfig
from jaxllama.errors import ConfigError

pytestmark = pytest.mark.ill_typed

HUGE = 10**400  # no float, no int64
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 1, 7, 2**31, 2**63, HUGE, -HUGE, 0.0, 1e300, -1e-300, math.nan, math.inf]
    ),
    st.sampled_from(["", "llama", "8", "\x00"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def spoilt(draw: Any, mapping: dict[str, Any]) -> dict[str, Any]:
    keys = draw(st.lists(st.sampled_from(sorted(mapping)), max_size=4)) + draw(
        st.lists(st.sampled_from(["rope_parameters", "llama.attention.scale", "magic"]), max_size=1)
    )
    return {**mapping, **{key: draw(VALUES) for key in keys}}


def read_or_refuse(read: Any, *args: Any, **kwargs: Any) -> None:
    try:
        config = read(*args, **kwargs)
    except ConfigError:
        return
    assert isinstance(config, LlamaConfig)


@given(st.data())
def test_hf(data: st.DataObject):
    config = spoilt(data.draw, CONFIG.to_hf())
    if isinstance(config["rope_scaling"], dict):
        config["rope_scaling"] = spoilt(
            data.draw, {"rope_type": "llama3", **config["rope_scaling"]}
        )
    read_or_refuse(LlamaConfig.from_hf, config)


@given(st.data())
def test_meta(data: st.DataObject):
    params = spoilt(data.draw, META_SHAPED.to_meta())
    read_or_refuse(LlamaConfig.from_meta, params, tie_word_embeddings=False)


@given(st.data())
def test_gguf(data: st.DataObject):
    source = data.draw(st.sampled_from([CONFIG, CONFIG.replace(rope_scaling=LINEAR)]))
    metadata = spoilt(data.draw, source.to_gguf())
    freqs = data.draw(
        st.sampled_from([None, np.zeros(0), np.ones(5), np.full(5, np.inf), np.full((5, 1), 2.0)])
    )
    read_or_refuse(LlamaConfig.from_gguf, metadata, tie_word_embeddings=False, rope_freqs=freqs)


@pytest.mark.parametrize("read", [LlamaConfig.from_hf, LlamaConfig.from_meta])
@pytest.mark.parametrize("not_an_object", [[], "llama", 3, None])
def test_not_an_object(read: Any, not_an_object: Any):
    tie = {"tie_word_embeddings": False} if read == LlamaConfig.from_meta else {}
    with pytest.raises(ConfigError, match="expected an object"):
        read(not_an_object, **tie)
