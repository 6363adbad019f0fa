"""Configs for tests: every size distinct and H not D / N, so that nothing fits by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.errors import ConfigError

LLAMA3 = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
LINEAR = RopeScaling(kind="linear", factor=2.5)
CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=40,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=LLAMA3,
    tie_word_embeddings=False,
    max_position_embeddings=131_072,
    bos_token_id=57,
    eos_token_ids=(58, 60),
    pad_token_id=59,
)
# D == N * H, which is all that Meta's format can say.
META_SHAPED = CONFIG.replace(hidden_size=60)


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the message with which `function` refuses its arguments."""
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the mapping less some keys."""
    return {key: value for key, value in mapping.items() if key not in names}
