"""A model loaded with quantised weights: one model in every form, which says what it is."""

from __future__ import annotations

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_llama import CONFIG, random_weights

from jaxllama import Llama
from jaxllama.checkpoint import Checkpoint, in_memory, load_model
from jaxllama.errors import CheckpointError, InputError
from jaxllama.forms import Form
from jaxllama.masks import Tokens, causal
from jaxllama.quantisation import Int4Array, Int8Array, weights_bytes
from jaxllama.quantisation.choice import parse_quant
from jaxllama.taps import Taps

FORMS: tuple[Form, ...] = get_args(Form)
# No two alike, and groups of 4 fill all: N * H = 72.
SMALL = CONFIG.replace(
    hidden_size=40, intermediate_size=44, head_dim=12, num_hidden_layers=3, rope_scaling=None
)
IDS = np.random.default_rng(1).integers(0, SMALL.vocab_size, (2, 7))
QUANTS = ("int8", "int4:4")


@functools.cache
def checkpoint(tied: bool = False) -> Checkpoint:
    config = SMALL.replace(tie_word_embeddings=tied)
    return in_memory(config, random_weights(config))


@functools.cache
def built(form: Form, quant: str | None, dtype: str = "float64", tied: bool = False) -> Llama:
    return Llama.from_pretrained(checkpoint(tied), dtype=dtype, form=form, quant=quant)


@jax.jit
def _recorded(model: Llama, ids: jax.Array) -> dict[str, jax.Array]:
    tokens = Tokens.contiguous(jnp.array([7, 5]), 7)
    taps = Taps()
    mask = causal().bind(tokens, tokens)
    model(ids, positions=jnp.asarray(tokens.positions), mask=mask, tap=taps)
    return taps.recorded()


def recorded(model: Llama, ids: Any = IDS) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in _recorded(model, jnp.asarray(ids)).items()}


def rounded_by_hand(quant: str, tied: bool) -> Checkpoint:
    """Return the checkpoint whose weights are what the quantised ones stand for."""
    source, how = checkpoint(tied), parse_quant(quant)
    weights = {}
    for name in source.tensors:
        values = source.read(name).astype(np.float64)
        head = name == ("model.embed_tokens.weight" if tied else "lm_head.weight")
        if head or "_proj" in name:
            size = 4 if how.bits == 4 and not head else None
            held: Any = (
                Int4Array.empty(values.shape, size) if size else Int8Array.empty(values.shape)
            )
            held[...] = values
            values = np.asarray(jax.device_put(held).widened(jnp.float64))
        weights[name] = values
    return in_memory(source.config, weights)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quant", QUANTS)
def test_every_form_is_the_model_of_the_rounded_weights(quant: str, tied: bool) -> None:
    expected = recorded(load_model(rounded_by_hand(quant, tied), dtype="float64"))
    exact = recorded(built("stacked", None, tied=tied))
    for form in FORMS:
        model = built(form, quant, tied=tied)
        found = recorded(model)
        assert list(found) == list(expected)  # all taps are there
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-11, err_msg=f"{form} {name}")
        held = sum(part.nbytes for part in jax.tree.leaves(nnx.state(model)))
        assert held == weights_bytes(model.config, dtype="float64", quant=quant)
        assert model.quant == quant and f"quant={quant!r}" in repr(model)
    # Negative control: it is another model than the one that was not rounded.
    assert np.abs(exact["logits"] - expected["logits"]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quant", QUANTS)
def test_narrow_dtypes_are_as_near_as_their_rounding(quant: str, dtype: str) -> None:
    wide = recorded(built("stacked", quant))["logits"]
    near = {"float32": 1e-5, "bfloat16": 0.1}[dtype]
    for form in ("stacked", "fused"):
        found = recorded(built(form, quant, dtype))["logits"]
        assert np.linalg.norm(found - wide) < near * np.linalg.norm(wide)


def test_unknown_tokens_are_nan_in_a_table_of_int8() -> None:
    ids = IDS.copy()
    ids[1, 2] = SMALL.vocab_size
    with pytest.raises(InputError, match="the vocabulary is"):
        built("stacked", "int8", tied=True)(
            jnp.asarray(ids), positions=jnp.zeros((2, 7), int), mask=jnp.ones((2, 7, 7), bool)
        )
    logits = recorded(built("stacked", "int8", tied=True), ids)["logits"]
    assert np.isnan(logits[1, 2:]).all() and np.isfinite(logits[0]).all()


def test_a_quantised_model_is_not_saved(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"the model is quantised \(int8\): .* without quant"):
        built("stacked", "int8").save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    built("stacked", None).save_pretrained(tmp_path / "out")


def test_nothing_is_read_for_a_wrong_request() -> None:
    read: list[str] = []
    source = checkpoint()
    watched = Checkpoint(
        **{
            **{name: getattr(source, name) for name in source.__dataclass_fields__},
            "reader": lambda name: read.append(name) or source.read(name),
        }
    )
    for quant, said in (("int3", "int3: expected one of int8"), ("int4:16", "groups of 16")):
        with pytest.raises(InputError, match=said):
            Llama.from_pretrained(watched, quant=quant)
    assert read == []
    Llama.from_pretrained(watched, quant="int8")
    assert sorted(read) == sorted(source.tensors)  # each once


def test_values_that_are_not_finite_are_told() -> None:
    weights = random_weights(SMALL)
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = np.nan
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight: .*NaN"):
        load_model(in_memory(SMALL, weights), dtype="float32", quant="int8")


def test_generation_writes_what_the_rounded_model_writes() -> None:
    prompts = [[3, 5, 7], [11]]
    hand = load_model(rounded_by_hand("int8", False), dtype="float64")
    expected = hand.generate(prompts, max_new_tokens=6, eos_ids=())
    found = built("fused", "int8").generate(prompts, max_new_tokens=6, eos_ids=())
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-10)
