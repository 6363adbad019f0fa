"""Requests for text: all that is wrong with one is said at once, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllama.cache import KVCache
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from jaxllama.model import Llama
from jaxllama.request import Request, bucket, check_request

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=20,
    intermediate_size=37,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    tie_word_embeddings=False,
    max_position_embeddings=512,
    eos_token_ids=(5, 8),
)


def abstract(config: LlamaConfig) -> Llama:
    """Return a model without weights, which no check looks at."""
    return nnx.eval_shape(lambda: Llama(config, dtype=jnp.float64, rngs=nnx.Rngs(0)))


MODEL = abstract(CONFIG)


def request(prompts: Any, model: Llama = MODEL, **options: Any) -> Request:
    nothing = {"eos_ids": None, "seed": 0, "cache": None, "cache_dtype": None, "every": 1}
    return check_request(model, prompts, **{"max_new_tokens": 4, **nothing, **options})


def _cache(rows: int = 1, capacity: int = 32, **changes: int) -> Callable[[], KVCache]:
    return lambda: KVCache.empty(CONFIG.replace(**changes), rows, capacity, jnp.float64)


def _pending(tokens: int) -> KVCache:
    positions = jnp.arange(tokens, dtype=jnp.int32)[None, :]
    return _cache()().extend(positions, positions >= 0)


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "prompts: none given"),
        ([[]], {}, "prompt 0 is empty, expected at least one token; give the bos token alone"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([1, 2], {}, "one sequence of ids, expected one per row; write [ids]"),
        ("text", {}, "prompts: text, expected token ids; use generate_text"),
        (["text"], {}, "prompts: text, expected token ids; use generate_text"),
        ([[1, 61]], {}, "prompt 0: token ids [61] outside the vocabulary of 61 (0 to 60)"),
        ([[-1]], {}, "token ids [-1] outside"),
        ([[1.0, 2.0]], {}, "prompt 0: float64 (2,), expected integer token ids (T,)"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0: expected an integer of at least 1"),
        ([[1]], {"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ([[1]], {"every": 0}, "every=0"),
        ([[1]], {"eos_ids": [3, 61]}, "eos_ids [61]: no such tokens, the vocabulary has ids 0"),
        ([[1]], {"seed": -1}, "seed -1: expected integers from 0 to 2**32 - 1"),
        ([[1], [2]], {"seed": [4]}, "1 seeds for 2 prompts"),
        ([[1]], {"seed": "lucky"}, "seed 'lucky'"),
        ([[1]], {"cache_dtype": "int4"}, "cache_dtype int4: expected one of f64"),
        ([[1]], {"cache": _cache(rows=2)}, "cache: 2 rows, expected 1"),
        (
            [[1] * 9],
            {"cache": _cache(capacity=16), "max_new_tokens": 8},
            "cache too small: row 0 needs 9 prompt tokens + 8 new ones = 17 slots, the cache has "
            "16; make it with capacity=17 or more, give max_new_tokens=7, or shorten",
        ),
        ([[1]], {"cache": _cache(head_dim=8)}, "(layers, kv heads, head dim) (3, 2, 8)"),
        ([[1]], {"cache": lambda: _pending(2)}, "a call with 2 tokens a row is still pending"),
    ],
)
def test_bad_requests_are_refused(prompts: Any, options: dict[str, Any], words: str) -> None:
    options = {k: v() if callable(v) else v for k, v in options.items()}
    with pytest.raises(InputError) as error:
        request(prompts, **options)
    assert words in str(error.value)


@pytest.mark.ill_typed
def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InputError, match="generate: 4 problems"):
        request([[99], []], max_new_tokens=0, eos_ids=[61])


def test_what_is_not_given_comes_from_the_model() -> None:
    found = request([[1, 2], np.asarray([3])], seed=9)
    assert [ids.tolist() for ids in found.prompts] == [[1, 2], [3]]
    assert found.longest == 2
    assert found.eos_ids == CONFIG.eos_token_ids
    assert found.cache_dtype == jnp.float64
    assert request([[1]], eos_ids=()).eos_ids == ()


def test_neighbouring_seeds_share_no_row() -> None:
    rows = [[1]] * 5
    seeds = [seed for first in range(6) for seed in request(rows, seed=first).seeds]
    assert len(set(seeds)) == 30
    assert seeds[::5] == [0, 1, 2, 3, 4, 5]
    assert request(rows, seed=seeds[:5]).seeds == seeds[:5]


def test_a_text_beyond_the_context_is_refused() -> None:
    short = abstract(CONFIG.replace(max_position_embeddings=18))
    rows = [[1] * 3, [2] * 7]
    said = (
        r"generate: row 1: 7 prompt tokens \+ 12 new ones: 19 tokens, and the configuration states "
        r"a context of 18 \(max_position_embeddings\); give max_new_tokens=11, or shorten the "
    )
    with pytest.raises(InputError, match=said):
        request(rows, model=short, max_new_tokens=12)
    with pytest.raises(InputError, match=r"20 prompt tokens .*embeddings\); shorten the prompt, "):
        request([[1] * 20], model=short, max_new_tokens=12)
    for fits in ({"max_new_tokens": 11}, {"max_new_tokens": 12, "prompts": rows[:1]}):
        request(**{"prompts": rows, "model": short} | fits)
    # Whoever extends a context says so in the configuration.
    longer = abstract(short.config.replace(max_position_embeddings=None))
    request(rows, model=longer, max_new_tokens=12)


def test_what_a_cache_holds_counts_against_the_context() -> None:
    config = CONFIG.replace(max_position_embeddings=18)
    cache = KVCache.empty(config, 1, 32, jnp.float64)
    held = replace(cache, lengths=jnp.full(1, 9, jnp.int32))
    with pytest.raises(InputError, match=r"9 tokens held \+ 4 prompt tokens \+ 6 new ones: 19 "):
        request([[1] * 4], model=abstract(config), max_new_tokens=6, cache=held)
    request([[1] * 4], model=abstract(config), max_new_tokens=5, cache=held)


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 16, 17, 32, 33, 1000)] == [16, 16, 32, 32, 64, 1024]
    assert [bucket(n, least=8) for n in (0, 8, 9)] == [8, 8, 16]
