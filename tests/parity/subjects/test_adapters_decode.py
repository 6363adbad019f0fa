"""Models not written here, through their own caches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import foreign_llamas as llamas
import jax.numpy as jnp
import pytest
from foreign_subjects import CHECKPOINT, CONFIG, first, hf, tunix
from witnesses import LAYERS, steps

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.result import Result
from parity.subjects import from_callable
from parity.subjects.base import Subject
from parity.subjects.torch_reference.subject import TorchReference

# What tunix uses of JAX and Flax is older than what is installed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tunix")

# Setup taps of a forward pass, which neither implementation shows.
SETUP = {"rope.inv_freq", "positions", "mask"}


def decoded(subject: Subject, **options: Any) -> Result:
    settings: dict[str, Any] = {"scenarios": "left_padded", "length": 8, "modes": "decode"}
    return parity.run(CHECKPOINT, subject=subject, **(settings | options))


def test_transformers_decodes_equal_and_shows_its_cache(torch_model: Any) -> None:
    result = decoded(hf(torch_model, decode=llamas.hf_decode))
    assert result.verdict == "equal"
    assert set(result.absent) == SETUP
    assert result.compared == result.expected - 3
    assert {row.mode for row in result.rows} == {"decode"}


def test_a_cache_need_not_be_shown(torch_model: Any) -> None:
    result = decoded(hf(torch_model, llamas.HF_NAMES, decode=llamas.hf_decode))
    assert result.verdict == "equal"
    assert set(result.absent) == SETUP | {"cache.k", "cache.v"}


def test_tunix_decodes_equal_and_shows_its_cache(jax_model: Any) -> None:
    result = decoded(tunix(jax_model, decode=llamas.tunix_decode))
    assert result.verdict == "equal"
    assert set(result.absent) == SETUP
    assert result.compared == result.expected - 3


def test_a_position_off_by_one_while_decoding_is_located_and_named(torch_model: Any) -> None:
    def late(model: Any, inputs: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
        result = llamas.hf_columns(model, inputs, start, stop, cache, offset=int(start > 0))
        return result, result.past_key_values

    result = decoded(hf(torch_model, decode=late), length=11)
    assert (first(result).row.tap, first(result).row.step) == ("layers.0.q_rope", 1)
    assert result.cause is not None
    assert result.cause.id == "position-offset" and result.cause.confirmed
    assert "positions shifted by +1 in calls after the first alone" in result.cause.summary


def one_row_early(model: Any, inputs: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Write each call's keys and values one slot too early, over the last ones."""
    if cache is not None:
        cache = {
            name: layer | {"end_index": jnp.full_like(layer["end_index"], start - 1)}
            for name, layer in cache.items()
        }
    return llamas.tunix_decode(model, inputs, start, stop, cache)


def test_a_cache_row_off_by_one_is_located_and_named(jax_model: Any) -> None:
    result = decoded(tunix(jax_model, decode=one_row_early))
    assert (first(result).row.tap, first(result).row.step) == ("cache.0.k", 1)
    assert result.cause is not None
    assert result.cause.id == "cache-slot-overwritten"


def shifted(inputs: Inputs) -> Inputs:
    """Return inputs whose last token stands one position too far."""
    positions = inputs.positions.copy()
    positions[:, -1] += 1
    return replace(inputs, positions=positions)


def test_a_function_with_a_cache() -> None:
    """The cache is the stages of a run, which are as many as the calls need."""
    names = {"states{i}": "layers.{i}.output", "scores": "logits"}

    def stage(run: Any) -> dict[str, Any]:
        taps = steps(run)
        return {f"states{i}": taps[f"layers.{i}.output"] for i in range(LAYERS)} | {
            "scores": taps["logits"]
        }

    def forward(inputs: Inputs) -> dict[str, Any]:
        return stage(TorchReference(CHECKPOINT, dtype="f32").start(inputs))

    def decode(inputs: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
        if cache is None:
            rest = inputs.tokens.shape[1] - stop
            chunks = [stop, *[1] * rest]
            cache = TorchReference(CHECKPOINT, dtype="f32").start_decode(inputs, chunks)
        return stage(cache), cache

    subject = from_callable(forward, names=names, config=CONFIG, decode=decode)
    result = decoded(subject, length=5)  # after the first call one token at a time
    assert result.verdict == "equal" and result.compared == LAYERS + 1
    late = from_callable(
        forward, names=names, config=CONFIG, decode=lambda i, *rest: decode(shifted(i), *rest)
    )
    # What a cause behind blocks may be is looked for elsewhere (diagnose/test_chains.py).
    assert first(decoded(late, seconds=1)).row.tap == "layers.0.output"


def test_what_has_no_cache_says_what_to_give(torch_model: Any) -> None:
    subject = hf(torch_model)
    assert not hasattr(subject, "start_decode") and not hasattr(subject, "start_grad")
    with pytest.raises(InputError, match="give decode= to what makes it"):
        decoded(subject)
    with pytest.raises(InputError, match="give parameters= to what makes it"):
        decoded(subject, modes="grad", scenarios="causal")


def test_a_decode_that_returns_no_cache_is_told_so(torch_model: Any) -> None:
    forgetful: Any = lambda *given: llamas.hf_decode(*given)[0].logits  # noqa: E731
    with pytest.raises(InputError, match="decode: returned Tensor, expected a tuple of two"):
        decoded(hf(torch_model, decode=forgetful))
