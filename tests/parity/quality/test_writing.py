"""Under its own mask a model writes its own text, under another one another."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from jaxllama import Llama, masks
from jaxllama.checkpoint.samples import tiny
from jaxllama.masks import Mask
from parity.quality import writing
from parity.quality.writing import write_after

PROMPTS = [[7, 7, 9], [3], [100, 9, 12, 14, 3, 99], [5, 6, 7, 8]]
LENGTHS = [5, 9, 7, 9]
SOUND = masks.causal() & masks.padding()


@pytest.fixture(scope="module", params=["unrolled", "stacked"])
def model(request: pytest.FixtureRequest) -> Llama:
    return Llama.from_pretrained(tiny(num_hidden_layers=2), form=request.param)


def write(model: Llama, mask: Mask | None, eos: Sequence[int] = ()) -> list[list[int]]:
    return write_after(model, PROMPTS, LENGTHS, eos=eos, mask=mask)


def likeliest(model: Llama, row: Sequence[int]) -> list[int]:
    """Return the token after each of a row's by one whole pass: no cache, no pads."""
    positions = jnp.arange(len(row), dtype=jnp.int32)[None]
    tokens = masks.Tokens(positions, jnp.ones_like(positions, bool))
    bound = masks.causal().bind(tokens, tokens)
    logits = nnx.jit(_logits)(model, jnp.array([row], jnp.int32), positions, bound)
    return np.asarray(logits[0]).argmax(axis=-1).tolist()


def _logits(model: Llama, ids: Array, positions: Array, mask: masks.BoundMask) -> Array:
    return model(ids, positions=positions, mask=mask)[0]


def test_under_the_models_own_mask_it_writes_what_it_writes(model: Llama) -> None:
    found = write(model, SOUND)
    assert [len(row) for row in found] == LENGTHS
    assert found == write(model, None)
    said = likeliest(model, PROMPTS[0] + found[0][:-1])
    assert found[0] == said[len(PROMPTS[0]) - 1 :]


def test_pads_that_are_seen_change_the_shorter_prompts(model: Llama) -> None:
    sound, spoilt = write(model, SOUND), write(model, masks.causal())
    assert sound[2] == spoilt[2]  # the longest has no pads
    assert sound[1] != spoilt[1]


def test_slots_that_hold_nothing_are_no_pads(model: Llama) -> None:
    """Without them the mask is causal; a cache twice as large would otherwise be seen."""
    alone = write_after(model, PROMPTS[2:3], [4], eos=(), mask=masks.causal())
    assert alone == write_after(model, PROMPTS[2:3], [4], eos=(), mask=SOUND)


def test_a_row_ends_where_the_text_does(model: Llama) -> None:
    full = write(model, SOUND)
    end = full[3][2]
    for mask in (SOUND, None):
        cut = write(model, mask, eos=[end])
        assert cut[3] == full[3][: full[3].index(end)]


def test_prompts_are_continued_in_parts(monkeypatch: pytest.MonkeyPatch, model: Llama) -> None:
    whole = write(model, SOUND)
    monkeypatch.setattr(writing, "MOST_ROWS", 3)
    assert write(model, SOUND) == whole


def test_prompts_and_texts_that_only_fit_the_context_apart_are_written_apart(model: Llama) -> None:
    """The longest prompt takes 6 tokens and the longest text 9, of no one row."""
    whole = write(model, None)
    short = nnx.clone(model)
    short.config = model.config.replace(max_position_embeddings=13)
    assert write(short, None) == whole
