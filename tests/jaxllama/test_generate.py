"""Generation against the uncached model, token by token; one program, compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from jaxllama import generate as module
from jaxllama.cache import KVCache
from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.errors import InputError
from jaxllama.generate import Generation, generate
from jaxllama.masks import Tokens, causal, padding
from jaxllama.model import Llama
from jaxllama.request import Request, check_request
from jaxllama.sampling import Sampling

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
    rope_scaling=RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    tie_word_embeddings=False,
    max_position_embeddings=512,
    eos_token_ids=(),
)
PROMPTS = [[7, 3, 50], [11, 60, 2, 2, 31, 9, 44], [5]]


def abstract(config: LlamaConfig, dtype: DTypeLike = jnp.float64) -> Llama:
    """Return a model without weights."""
    return nnx.eval_shape(lambda: Llama(config, dtype=dtype, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model() -> Llama:
    """A tiny model in float64, with large weights so that attention is far from uniform."""
    rng = np.random.default_rng(6)

    def vivid(path: Any, weight: jax.ShapeDtypeStruct) -> jax.Array:
        if "norm" in str(path):
            return jnp.asarray(rng.uniform(0.5, 1.5, weight.shape))
        return jnp.asarray(rng.normal(0, 1.7 * weight.shape[-1] ** -0.5, weight.shape))

    graph, weights = nnx.split(abstract(CONFIG))
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(vivid, weights))


@partial(jax.jit, static_argnames="graph")
def _forward(graph: Any, weights: Any, tokens: jax.Array, length: jax.Array) -> jax.Array:
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    side = Tokens(positions, positions < length)
    mask = (causal() & padding()).bind(side, side).to_bool()
    return nnx.merge(graph, weights)(tokens, positions=positions, mask=mask)[0][0]


def uncached_logits(model: Llama, ids: Sequence[int]) -> np.ndarray:
    """Return the logits [T, V] of one row, by a plain forward pass without any cache."""
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(ids)] = ids
    logits = _forward(*nnx.split(model), jnp.asarray(padded), jnp.int32(len(ids)))
    return np.asarray(logits)[: len(ids)]


def assert_as_uncached(model: Llama, prompts: list[list[int]], found: Generation) -> None:
    """Check greedy tokens, and all log-probabilities, against the uncached model."""
    for row, (prompt, new) in enumerate(zip(prompts, found.rows(), strict=True)):
        logits = uncached_logits(model, prompt + new)[len(prompt) - 1 : -1]
        assert new == logits.argmax(axis=-1).tolist()
        expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(len(new)), new]
        np.testing.assert_allclose(found.logprobs[row, : len(new)], expected, rtol=0, atol=1e-10)


def request_for(model: Llama, prompts: list[list[int]]) -> Request:
    return check_request(
        model,
        prompts,
        max_new_tokens=12,
        eos_ids=None,
        seed=0,
        cache=None,
        cache_dtype=None,
        every=1,
    )


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Count everything that XLA compiles meanwhile, whoever asks for it."""
    seen: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_greedy_decode_equals_the_uncached_forward(model: Llama) -> None:
    found = model.generate(PROMPTS, max_new_tokens=12)
    assert found.tokens.shape == found.logprobs.shape == (3, 12)
    assert found.lengths.tolist() == [12, 12, 12]
    assert found.finish_reasons == ("length",) * 3
    assert_as_uncached(model, PROMPTS, found)


@pytest.mark.parametrize("fault", ["position", "neighbour's keys"])
def test_wrong_decode_is_caught(monkeypatch: pytest.MonkeyPatch, model: Llama, fault: str) -> None:
    hidden, feed = Llama.hidden, module.feed

    def late(self: Llama, tokens: jax.Array, *, positions: jax.Array, **rest: Any) -> Any:
        return hidden(self, tokens, positions=positions + int(tokens.shape[1] == 1), **rest)

    def stale(model: Llama, cache: KVCache, tokens: Any, valid: Any, **rest: Any) -> Any:
        stale_keys = dataclasses.replace(cache, k=jnp.roll(cache.k, 1, axis=1))
        return feed(model, stale_keys, tokens, valid, **rest)

    if fault == "position":
        monkeypatch.setattr(Llama, "hidden", late)
    else:
        monkeypatch.setattr(module, "feed", stale)
    module._advance.clear_cache()
    try:
        found = generate(model, PROMPTS, max_new_tokens=12)
    finally:
        module._advance.clear_cache()
    with pytest.raises(AssertionError):
        assert_as_uncached(model, PROMPTS, found)


def test_a_row_is_the_same_alone_and_among_others(model: Llama) -> None:
    how = Sampling(temperature=1.3, top_k=30, min_p=0.01, repetition_penalty=1.1)
    together = generate(model, PROMPTS, max_new_tokens=10, sampling=how, seed=70)
    for row, prompt in enumerate(PROMPTS):
        own = [together.seeds[row]]
        alone = generate(model, [prompt], max_new_tokens=10, sampling=how, seed=own)
        assert alone.rows()[0] == together.rows()[row]
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[row], atol=1e-10)


def test_seeds(model: Llama) -> None:
    how = Sampling(temperature=2.0, top_k=60, min_p=1e-6, repetition_penalty=0.99)
    run = partial(generate, model, [PROMPTS[0]] * 3, max_new_tokens=10, sampling=how)
    first = run(seed=5)
    assert run(seed=5).rows() == first.rows()
    assert run(seed=first.seeds[::-1]).rows() == first.rows()[::-1]
    # Neighbouring seeds share no row.
    other = run(seed=6)
    texts = {tuple(row) for row in [*first.rows(), *other.rows()]}
    assert len(texts) == len({*first.seeds, *other.seeds}) == 6
    assert first.seeds[0] == 5 and run(seed=2**32 - 1).seeds[0] == 2**32 - 1


def test_sampled_tokens_obey_filters_and_penalty_at_every_step(model: Llama) -> None:
    how = Sampling(temperature=0.7, top_k=4, min_p=0.05, repetition_penalty=1.5)
    found = generate(model, PROMPTS, max_new_tokens=12, sampling=how, seed=1)
    for row, (prompt, new) in enumerate(zip(PROMPTS, found.rows(), strict=True)):
        logits = uncached_logits(model, prompt + new)[len(prompt) - 1 : -1]
        raw = np.asarray(jax.nn.log_softmax(logits, axis=-1))
        for step, token in enumerate(new):
            # Log-probabilities are the model's own, whatever the sampling.
            assert found.logprobs[row, step] == pytest.approx(raw[step, token], abs=1e-10)
            scores = logits[step].copy()
            seen = list({*prompt, *new[:step]})
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * 1.5, scores[seen] / 1.5)
            assert (scores > scores[token]).sum() < 4
            assert scores[token] >= scores.max() + 0.7 * np.log(0.05)


def test_repetition_penalty_keeps_account_of_prompt_and_new_tokens(model: Llama) -> None:
    almost_greedy = Sampling(temperature=0.01, top_k=1, min_p=0.5, repetition_penalty=1.01)
    run = partial(generate, model, PROMPTS, max_new_tokens=16)
    plain, strict = (
        [len({*prompt, *new}) - len({*prompt}) for prompt, new in zip(PROMPTS, rows, strict=True)]
        for rows in (
            run(sampling=almost_greedy).rows(),
            run(sampling=dataclasses.replace(almost_greedy, repetition_penalty=1e9)).rows(),
        )
    )
    assert strict == [16, 16, 16]
    assert min(plain) < 16, "the control: without a penalty tokens do come again"


def test_eos_ends_its_row_alone(model: Llama) -> None:
    plain = generate(model, PROMPTS, max_new_tokens=12)
    ends = [plain.rows()[0][4], plain.rows()[2][7]]
    found = generate(model, PROMPTS, max_new_tokens=12, eos_ids=ends)
    reasons = set()
    for row, (full, new) in enumerate(zip(plain.rows(), found.rows(), strict=True)):
        first = next((i for i, token in enumerate(full) if token in ends), None)
        assert new == full[: 12 if first is None else first + 1]
        assert found.finish_reasons[row] == ("length" if first is None else "eos")
        assert (found.tokens[row, len(new) :] == -1).all()
        assert (found.logprobs[row, len(new) :] == 0).all()
        reasons.add(found.finish_reasons[row])
    assert "eos" in reasons
    # All but each row's last token has been read.
    lengths = [len(p) + len(new) - 1 for p, new in zip(PROMPTS, found.rows(), strict=True)]
    assert found.cache.lengths.tolist() == lengths


def test_a_conversation_goes_on_from_its_cache(model: Llama) -> None:
    whole = generate(model, PROMPTS, max_new_tokens=11)
    cache = KVCache.empty(CONFIG, 3, 32, jnp.float64)
    first = generate(model, PROMPTS, max_new_tokens=4, cache=cache)
    again = [new[-1:] for new in first.rows()]
    second = generate(model, again, max_new_tokens=7, cache=first.cache)
    assert [a + b for a, b in zip(first.rows(), second.rows(), strict=True)] == whole.rows()
    both = np.concatenate([first.logprobs, second.logprobs], axis=1)
    np.testing.assert_allclose(both, whole.logprobs, atol=1e-10)


def test_the_cache_is_donated_and_says_so_when_used_again(model: Llama) -> None:
    cache = KVCache.empty(CONFIG, 3, 32, jnp.float64)
    found = generate(model, PROMPTS, max_new_tokens=4, cache=cache)
    assert cache.k.is_deleted() and cache.v.is_deleted()
    assert not found.cache.k.is_deleted()
    with pytest.raises(InputError, match="an earlier generate has consumed it"):
        generate(model, PROMPTS, max_new_tokens=4, cache=cache)


def test_watching_changes_nothing_but_what_it_cuts(model: Llama) -> None:
    plain = generate(model, PROMPTS, max_new_tokens=11)
    seen: list[list[list[int]]] = []

    def watch(rows: list[list[int]]) -> dict[int, int]:
        seen.append(rows)
        return {1: 5} if len(rows[1]) >= 5 else {}

    found = generate(model, PROMPTS, max_new_tokens=11, watch=watch, every=3)
    assert [len(rows[0]) for rows in seen] == [3, 6, 9, 11]
    assert [len(rows[1]) for rows in seen] == [3, 6, 6, 6]
    expected = plain.rows()
    expected[1] = expected[1][:5]
    assert found.rows() == expected
    assert found.finish_reasons == ("length", "stop", "length")
    assert found.cache.lengths.tolist() == [3 + 10, 7 + 4, 1 + 10]
    # What the cut row keeps is still right: go on from it.
    on = generate(model, [r[-1:] for r in found.rows()], max_new_tokens=2, cache=found.cache)
    assert on.rows()[1] == plain.rows()[1][5:7]


def test_generation_stops_when_every_row_has(model: Llama) -> None:
    seen: list[int] = []

    def watch(rows: list[list[int]]) -> dict[int, int]:
        seen.append(len(rows[0]))
        return {0: 2, 1: 2, 2: 1}

    found = generate(model, PROMPTS, max_new_tokens=11, watch=watch, every=2)
    assert seen == [2]
    assert found.lengths.tolist() == [2, 2, 1]
    assert found.tokens[2].tolist()[1:] == [-1]


def test_one_token(model: Llama) -> None:
    found = generate(model, PROMPTS, max_new_tokens=1)
    assert_as_uncached(model, PROMPTS, found)
    assert found.cache.lengths.tolist() == [3, 7, 1]


def test_prompts_may_be_arrays(model: Llama) -> None:
    rows = np.asarray([[3, 9, 27], [4, 8, 16], [5, 6, 7]])
    expected = generate(model, rows.tolist(), max_new_tokens=3)
    for prompts in (rows, jnp.asarray(rows), [rows[0], jnp.asarray(rows[1]), rows[2].tolist()]):
        np.testing.assert_array_equal(
            generate(model, prompts, max_new_tokens=3).tokens, expected.tokens
        )


def test_a_new_length_compiles_nothing(model: Llama) -> None:
    how = Sampling(temperature=1.0, top_p=0.9)
    run = partial(generate, model, sampling=how)
    run([[1, 2, 3], [4]], max_new_tokens=5)
    with compilations() as compiled:
        run([[1, 2, 3, 4, 5, 6], [1] * 16], max_new_tokens=9, seed=3, eos_ids=[8, 9])
        run([[8], [9]], max_new_tokens=16, sampling=Sampling(temperature=0.3, top_p=0.2))
        run([[8], [9]], max_new_tokens=16, watch=lambda rows: {0: 1})
        programs = module._advance._cache_size()
    assert compiled == []
    # Control: the next bucket does compile, and our program exactly once.
    with compilations() as compiled:
        run([[1] * 17, [2]], max_new_tokens=5)
    assert compiled
    assert module._advance._cache_size() == programs + 1


@pytest.mark.ill_typed  # `lower` fills the state with descriptions of arrays
def test_prefill_and_decode_are_one_program_that_updates_its_cache_in_place(model: Llama) -> None:
    request = request_for(model, PROMPTS)
    state = module._begin(model, request, module.GREEDY, None)
    inputs = module._inputs(request, module.GREEDY)
    lowered = module._advance.lower(*nnx.split(model), state, inputs, jnp.int32(3))
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= state.cache.nbytes


@pytest.mark.ill_typed  # as above
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_whole_program_lowers_for_accelerators(model: Llama, platform: str) -> None:
    how = Sampling(temperature=1.0, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
    request = request_for(model, PROMPTS)
    state, inputs = module._begin(model, request, how, None), module._inputs(request, how)
    export = jax.export.export(module._advance, platforms=[platform])
    assert export(*nnx.split(model), state, inputs, jnp.int32(3)).platforms == (platform,)


def test_every_backend_writes_the_same(model: Llama) -> None:
    graph, weights = nnx.split(abstract(CONFIG, jnp.float32))
    narrow = jax.tree.map(lambda w: w.astype(jnp.float32), nnx.state(model))
    assert jax.tree.structure(narrow) == jax.tree.structure(weights)
    single = nnx.merge(graph, narrow)
    found = {}
    for backend in ("xla", "dot_product"):
        single.backend = backend
        found[backend] = generate(single, PROMPTS, max_new_tokens=12)
    assert found["xla"].rows() == found["dot_product"].rows()
    np.testing.assert_allclose(
        found["xla"].logprobs, found["dot_product"].logprobs, rtol=0, atol=1e-4
    )


def test_a_cache_in_another_dtype_is_rounded_on_purpose_only(model: Llama) -> None:
    rounded = generate(model, PROMPTS, max_new_tokens=4, cache_dtype=jnp.bfloat16)
    exact = generate(model, PROMPTS, max_new_tokens=4)
    assert rounded.cache.k.dtype == jnp.bfloat16
    assert 1e-6 < np.abs(rounded.logprobs[:, 1] - exact.logprobs[:, 1]).max() < 1
    cache = KVCache.empty(CONFIG, 3, 32, jnp.bfloat16)
    with pytest.raises(InputError, match=r"keys in bfloat16 .* expected float64; make it by"):
        generate(model, PROMPTS, max_new_tokens=4, cache=cache)
    generate(model, PROMPTS, max_new_tokens=4, cache=cache, cache_dtype=jnp.bfloat16)


def test_logits_that_are_not_finite_are_an_error(model: Llama) -> None:
    broken = nnx.clone(model)
    broken.norm.weight[...] = broken.norm.weight[...].at[3].set(jnp.nan)
    with pytest.raises(InputError, match=r"row 0, new token 0: .* not finite; check the"):
        generate(broken, PROMPTS, max_new_tokens=12)
