"""Cases from the field about masks, caches and runs that show little: one test a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from foreign_llamas import hf_model

import parity
from jaxllama import KVCache, Llama
from jaxllama.checkpoint.samples import tiny
from jaxllama.masks import Tokens, causal, padding
from parity.lint import Case, catalogue, lint
from parity.lint.probe_cases import Probed
from parity.subjects import from_torch

# Of head dim 8 the scale is no number of bfloat16.
CHECKPOINT = tiny(head_dim=8, num_hidden_layers=2)
EXACT = 8**-0.5


def few_names(scale: float, *more: str) -> Any:
    """Return transformers' Llama as a subject that shows blocks, scores and logits alone."""
    model = hf_model(CHECKPOINT)
    for layer in model.model.layers:
        layer.self_attn.scaling = scale

    def call(model: Any, i: Any) -> Any:
        hidden = torch.tensor(~i.mask[:, None])
        fill = torch.where(hidden, torch.finfo(torch.float32).min, 0.0)
        tokens, positions = torch.tensor(i.tokens), torch.tensor(i.positions)
        return model(tokens, position_ids=positions, attention_mask=fill, use_cache=False)

    names = {
        "model.layers.{i}": "layers.{i}.output",
        "lm_head": "logits",
        "torch.nn.functional.softmax():input": "layers.{i}.attn_scores",
        **({"torch.nn.functional.softmax()": "layers.{i}.attn_probs"} if more else {}),
    }
    return from_torch(model, config=CHECKPOINT.config, call=call, names=names)


def judged(subject: Any) -> Any:
    return parity.run(CHECKPOINT, subject=subject, dtypes="f32", scenarios="causal", length=32)


@pytest.mark.parametrize("more", [(), ("probs",)])
def test_case_31_an_exact_llama_that_shows_little_is_equal(more: tuple[str, ...]) -> None:
    assert judged(few_names(EXACT, *more)).verdict == "equal"


def test_case_31_a_scale_rounded_to_bfloat16_is_found_and_named() -> None:
    result = judged(few_names(float(np.float32(EXACT).astype(ml_dtypes.bfloat16))))
    assert result.verdict == "divergent"
    assert result.first_divergence.row.tap == "layers.0.attn_scores"
    assert result.cause.confirmed and "scale" in result.cause.id


CAUSAL = np.tri(5, dtype=bool)
VALID = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
ROWS = CAUSAL[None] & VALID[:, None].astype(bool)


def rules(mask: np.ndarray, **facts: Any) -> list[str]:
    return [found.rule for found in lint(Case(mask=mask, **facts)).findings]


def test_case_34_rows_times_heads() -> None:
    facts: dict[str, Any] = {"valid": VALID, "heads": 3, "use": "additive", "empty_row": "zero"}
    right, tiled = np.repeat(ROWS, 3, 0), np.tile(ROWS, (3, 1, 1))
    assert rules(np.where(right, 0.0, -np.inf).astype(np.float32), **facts) == []
    assert rules(np.where(tiled, 0.0, -np.inf).astype(np.float32), **facts) == ["M08"]


def test_case_35_a_numbered_attention_mask() -> None:
    numbers = np.array([[1, 1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 2, 0, 0]])
    leaky = np.tri(7, dtype=bool)[None, None] & (numbers > 0)[:, None, None]
    tight = leaky & (numbers[:, None, :, None] == numbers[:, None, None, :])
    assert rules(leaky, valid=numbers, empty_row="zero") == ["S01"]
    assert rules(tight, valid=numbers, empty_row="zero") == []


def test_case_37_lengths_in_place_of_a_mask() -> None:
    def by_length(q: Any, k: Any, v: Any, mask: Any) -> Any:
        lengths = mask[:, -1].sum(-1, dtype=jnp.int32)
        slots = jnp.arange(k.shape[1], dtype=jnp.int32)
        seen = (slots[None, None] < lengths[:, None, None]) & mask.any(0, keepdims=True)
        return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])

    def by_mask(q: Any, k: Any, v: Any, mask: Any) -> Any:
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        return jnp.where(mask.any(-1)[..., None, None], out, jnp.zeros_like(out))

    obeys = catalogue()["K01"].check
    wrong = next(iter(obeys(Probed("by length", jax.jit(by_length)))))
    assert wrong.severity == "error"
    assert list(obeys(Probed("by mask", jax.jit(by_mask)))) == []


def test_case_38_a_cache_is_rewound_and_written_again() -> None:
    model = Llama.from_pretrained(tiny(num_hidden_layers=1))
    prompt = np.random.default_rng(0).integers(0, 256, (2, 5)).astype(np.int32)
    draft = np.full((2, 4), 7, np.int32)
    right = np.array([[7, 7, 9, 11], [7, 7, 12, 13]], np.int32)

    def feed(cache: KVCache, rows: np.ndarray, start: int) -> tuple[Any, KVCache]:
        tokens = jnp.asarray(rows)
        at = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = jnp.broadcast_to(at, tokens.shape)
        valid = jnp.ones(tokens.shape, bool)
        cache = cache.extend(positions, valid)
        queries = Tokens(positions, valid, jnp.zeros(tokens.shape, jnp.int32))
        mask = (causal() & padding()).bind(queries, cache.tokens())
        logits, filled = model(tokens, positions=positions, mask=mask, cache=cache)
        assert filled is not None
        return logits, filled

    _, begun = feed(KVCache.empty(model.config, 2, 16, jnp.float32), prompt, 0)
    _, drafted = feed(begun, draft, 5)
    found, _ = feed(drafted.rewind(jnp.asarray([7, 7], jnp.int32)), right[:, 2:], 7)
    _, accepted = feed(begun, right[:, :2], 5)
    wanted, _ = feed(accepted, right[:, 2:], 7)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    stale, _ = feed(drafted, right[:, 2:], 9)  # not rewound: the draft is seen
    assert float(jnp.abs(stale - wanted).max()) > 1e-3


def test_case_40_a_large_fill() -> None:
    fill = np.float32(-0.7 * float(np.finfo(np.float32).max))
    once = np.where(np.tri(6, dtype=bool)[None, None], np.float32(0), fill)
    with np.errstate(over="ignore"):
        twice = once + once
    assert rules(once, use="additive", scores_dtype="f32") == []
    assert "M04" in rules(once, use="additive", scores_dtype="f16")
    assert rules(twice, use="additive", scores_dtype="f32") == []
