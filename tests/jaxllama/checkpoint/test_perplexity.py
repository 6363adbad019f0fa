from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama import Llama
from jaxllama.checkpoint import tiny
from jaxllama.checkpoint.perplexity import perplexity
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal

TOKENS = np.random.default_rng(1).integers(0, 256, 23).tolist()


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.from_pretrained(tiny(num_hidden_layers=1))


def expected(model: Llama, window: int) -> float:
    """Each token but the first once, from what stands before it in its window."""
    losses = []
    for first in range(0, len(TOKENS) - 1, window):
        row = jnp.asarray([TOKENS[first : first + window + 1]], jnp.int32)
        positions = jnp.arange(row.shape[1], dtype=jnp.int32)[None, :]
        known = Tokens(positions=positions, valid=jnp.ones(row.shape, bool))
        logits, _ = model(row, positions=positions, mask=causal().bind(known, known))
        wide = np.asarray(logits[0], np.float64)
        log_probs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
        losses += [-log_probs[i, int(row[0, i + 1])] for i in range(row.shape[1] - 1)]
    assert len(losses) == len(TOKENS) - 1
    return float(np.exp(np.mean(losses)))


@pytest.mark.parametrize("window", [1, 7, 512])
def test_every_token_counts_once(window: int, model: Llama) -> None:
    assert perplexity(model, TOKENS, window=window) == pytest.approx(expected(model, window), 1e-5)


def test_windows_differ_and_a_mean_of_windows_would_too(model: Llama) -> None:
    found = {perplexity(model, TOKENS, window=window) for window in (7, 22)}
    assert len(found) == 2


@pytest.mark.parametrize(("tokens", "window"), [([], 5), ([1], 5), ([1, 2], 0)])
def test_too_little_is_refused(tokens: list[int], window: int, model: Llama) -> None:
    with pytest.raises(InputError, match="expected at least 2"):
        perplexity(model, tokens, window=window)
