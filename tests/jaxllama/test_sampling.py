"""Filters against brute force and transformers, draws against their distribution."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation import logits_process as hf

from jaxllama import sampling
from jaxllama.errors import InputError
from jaxllama.sampling import Sampling, choose, filter_logits

V = 23
SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=1.0, top_k=V + 9),
    Sampling(temperature=0.8, top_p=0.75),
    Sampling(temperature=1.0, top_p=1e-9),
    Sampling(temperature=1.3, min_p=0.25),
    Sampling(temperature=1.1, repetition_penalty=1.4),
    Sampling(temperature=1.1, repetition_penalty=0.6),
    Sampling(temperature=0.9, top_k=9, top_p=0.8, min_p=0.15, repetition_penalty=1.25),
]


def brute_force(logits: np.ndarray, seen: np.ndarray, how: Sampling) -> dict[int, float]:
    """Return the probability of every token kept, in plain Python, from the settings' own words."""
    scores = [float(x) for x in logits]
    for token in np.flatnonzero(seen):
        factor = how.repetition_penalty if scores[token] < 0 else 1 / how.repetition_penalty
        scores[token] *= factor
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    weights = {token: np.exp(scores[token] / how.temperature) for token in ranked}
    if how.top_k is not None:
        weights = {token: weights[token] for token in ranked[: how.top_k]}
    if how.top_p < 1:
        total, reached, kept = sum(weights.values()), 0.0, {}
        for token, weight in weights.items():
            if reached >= how.top_p:
                break
            kept[token] = weight
            reached += weight / total
        weights = kept
    top = max(weights.values())
    weights = {t: w for t, w in weights.items() if w >= how.min_p * top}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def probabilities(logits: np.ndarray, seen: np.ndarray, how: Sampling) -> np.ndarray:
    """Return the distribution that `choose` draws from."""
    values, scores = how.values(), jnp.asarray(logits)
    if how.penalises:
        scores = sampling.penalise(scores, jnp.asarray(seen), values["repetition_penalty"])
    scores = scores / values["temperature"] if "temperature" in values else scores
    return np.asarray(jax.nn.softmax(filter_logits(scores, values), axis=-1))


def assert_as_brute_force(logits: np.ndarray, seen: np.ndarray, how: Sampling) -> None:
    found = probabilities(logits, seen, how)
    for row in range(len(logits)):
        expected = brute_force(logits[row], seen[row], how)
        assert set(np.flatnonzero(found[row])) == set(expected)
        for token, probability in expected.items():
            assert found[row, token] == pytest.approx(probability, rel=1e-12)


def some_logits() -> tuple[np.ndarray, np.ndarray]:
    """Return rows of scattered logits, and of few distinct ones so that ties abound."""
    rng = np.random.default_rng(3)
    scattered = rng.normal(0, 3, (4, V))
    tied = rng.integers(-2, 3, (4, V)).astype(float)
    return np.concatenate([scattered, tied]), rng.random((8, V)) < 0.3


@pytest.mark.parametrize("how", SETTINGS, ids=repr)
def test_filters_equal_brute_force(how: Sampling) -> None:
    assert_as_brute_force(*some_logits(), how)


def edge_logits() -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities 1/2, 1/4, 1/8, ...: their sums are exact, so p can lie on one."""
    probs = 2.0 ** -np.minimum(np.arange(1, V + 1), V - 1)
    return np.log(np.random.default_rng(5).permutation(probs))[None, :], np.zeros((1, V), bool)


@pytest.mark.parametrize(("p", "kept"), [(0.5, 1), (0.500001, 2), (0.75, 2), (0.9, 4)])
def test_top_p_keeps_the_token_that_reaches_p_and_no_more(p: float, kept: int) -> None:
    logits, seen = edge_logits()
    found = probabilities(logits, seen, Sampling(temperature=1.0, top_p=p))
    assert (found > 0).sum() == kept


def _top_p_too_many(logits: jax.Array, order: jax.Array, p: jax.Array) -> jax.Array:
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    last = (jnp.cumsum(probs, axis=-1) < p).sum(axis=-1) + 1
    return sampling._keep_to_rank(logits, order, last)


def _top_p_too_few(logits: jax.Array, order: jax.Array, p: jax.Array) -> jax.Array:
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    last = jnp.maximum((jnp.cumsum(probs, axis=-1) <= p).sum(axis=-1) - 1, 0)
    return sampling._keep_to_rank(logits, order, last)


def _top_k_by_value(logits: jax.Array, order: jax.Array, k: jax.Array) -> jax.Array:
    edge = jnp.take_along_axis(logits, order, axis=-1)[:, k - 1]
    return jnp.where(logits >= edge[:, None], logits, -jnp.inf)


def _divided_only(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    return jnp.where(seen, logits / penalty, logits)


def _min_p_of_all(logits: jax.Array, p: jax.Array) -> jax.Array:
    return jnp.where(jax.nn.softmax(logits, axis=-1) >= p, logits, -jnp.inf)


@pytest.mark.parametrize(
    ("name", "mutant", "how"),
    [
        ("top_p", _top_p_too_many, Sampling(temperature=1.0, top_p=0.8)),
        ("top_p", _top_p_too_few, Sampling(temperature=1.0, top_p=0.8)),
        ("top_k", _top_k_by_value, Sampling(temperature=1.0, top_k=5)),
        ("penalise", _divided_only, Sampling(temperature=1.0, repetition_penalty=1.3)),
        ("min_p", _min_p_of_all, Sampling(temperature=1.0, min_p=0.2)),
    ],
)
def test_brute_force_catches_wrong_filters(
    monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable[..., jax.Array], how: Sampling
) -> None:
    assert_as_brute_force(*some_logits(), how)
    monkeypatch.setattr(sampling, name, mutant)
    with pytest.raises(AssertionError):
        assert_as_brute_force(*some_logits(), how)


@pytest.mark.parametrize("how", SETTINGS, ids=repr)
def test_settings_mean_what_they_mean_to_transformers(how: Sampling) -> None:
    logits, seen = some_logits()
    logits, seen = logits[:4], seen[:4]  # where logits tie, transformers keeps more than top_k
    assert seen.any(axis=1).all()
    steps = hf.LogitsProcessorList([hf.TemperatureLogitsWarper(how.temperature)])
    if how.top_k is not None:
        steps.append(hf.TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(hf.TopPLogitsWarper(how.top_p))
    if how.min_p > 0:
        steps.append(hf.MinPLogitsWarper(how.min_p))
    if how.penalises:
        steps.insert(0, hf.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    for row in range(len(logits)):
        ids = torch.tensor(np.flatnonzero(seen[row]))[None, :]
        expected = torch.softmax(steps(ids, torch.tensor(logits[row : row + 1])), dim=-1)
        found = probabilities(logits[row : row + 1], seen[row : row + 1], how)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-12)


def draws(logits: np.ndarray, how: Sampling, count: int) -> np.ndarray:
    keys = jax.vmap(jax.random.key)(jnp.arange(count, dtype=jnp.uint32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, V))
    return np.asarray(jax.jit(choose)(rows, keys, how.values()))


def fit(counts: np.ndarray, probs: np.ndarray) -> float:
    """Return the p-value of these counts under these probabilities (Pearson's chi-square)."""
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    return float(stats.chisquare(counts[kept], probs[kept] * counts.sum()).pvalue)


def test_draws_follow_the_distribution() -> None:
    logits = np.random.default_rng(8).normal(0, 1.0, (1, V))
    how = Sampling(temperature=0.9, top_k=14, top_p=0.93, min_p=0.04)
    counts = np.bincount(draws(logits, how, 40_000), minlength=V)
    probs = probabilities(logits, np.zeros((1, V), bool), how)[0]
    assert 1 < (probs > 0).sum() < 14, "min_p or top_p must cut more than top_k does"
    assert fit(counts, probs) > 0.01
    # Control: the same draws do not fit a temperature of 1.0 in place of 0.9.
    warmer = probs**0.9
    assert fit(counts, warmer / warmer.sum()) < 1e-6


def test_a_draw_depends_on_its_own_key_and_logits_alone() -> None:
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.normal(0, 2, (5, V)))
    keys = jax.vmap(jax.random.key)(jnp.arange(5, dtype=jnp.uint32))
    values = Sampling(temperature=1.0, top_p=0.9).values()
    draw = jax.jit(choose)
    together = draw(logits, keys, values)
    alone = [draw(logits[i : i + 1], keys[i : i + 1], values)[0] for i in range(5)]
    assert together.tolist() == [int(t) for t in alone]
    # Control: another key at the same place does draw something else now and then.
    others = draw(logits, keys[::-1], values)
    assert others.tolist() != together.tolist()


def test_greedy_takes_the_most_likely_and_of_equals_the_first() -> None:
    logits = jnp.asarray([[0.0, 3.0, 3.0, -1.0], [5.0, 3.0, 3.0, -1.0]])
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))
    assert choose(logits, keys, Sampling().values()).tolist() == [1, 0]
    penalty = Sampling(repetition_penalty=2.0).values()
    seen = jnp.asarray([[False, True, False, False], [True, False, False, False]])
    assert choose(logits, keys, penalty, seen).tolist() == [2, 1]


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: expected 0 (greedy) or"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": 1, "top_k": 0}, "top_k=0: expected an integer of at least 1"),
        ({"temperature": 1, "top_k": 2.0}, "top_k=2.0"),
        ({"temperature": 1, "top_p": 0}, "top_p=0: expected from 1e-12 up to 1"),
        ({"temperature": 1, "top_p": 1.01}, "top_p=1.01"),
        ({"temperature": 1, "min_p": 1.0}, "min_p=1.0: expected a number from 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"top_k": 5}, "top_k would change nothing"),
        ({"top_p": 0.5, "min_p": 0.1}, "top_p, min_p would change nothing"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InputError) as error:
        Sampling(**settings)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(InputError, match="sampling: 3 problems") as error:
        Sampling(temperature=-1, top_p=2, min_p=-1)
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize("how", [*SETTINGS, Sampling()], ids=repr)
def test_only_active_settings_reach_the_program(how: Sampling) -> None:
    assert set(how.values()) == how.active


def test_values_that_float32_cannot_divide_by_are_refused() -> None:
    for name in ("temperature", "top_p", "repetition_penalty"):
        with pytest.raises(InputError, match=name):
            Sampling(**{"temperature": 1.0, name: 1e-38})
    assert Sampling(temperature=1.0, top_k=3_000_000_000).values()["top_k"] == 2**31 - 1
