"""Perplexity counts every token once, however texts are laid out, in JAX and in PyTorch."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest

from jaxllama import Llama, masks
from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.perplexity import perplexity as perplexity_of
from jaxllama.checkpoint.samples import tiny
from parity.quality.examples import EncodedExample, QualityExample, encode_examples
from parity.quality.foretelling import (
    ForetoldTexts,
    LogitsOf,
    foretell,
    logits_of_model,
    logits_of_subject,
)
from parity.quality.layouts import LAYOUTS, ForetoldBatch, lay_out, passages
from parity.subjects.torch_reference.subject import TorchReference

LENGTH = 24
TEXTS = ["Short.", "A text of middling length.", "One that is longer than what is given at once."]
LINES = [
    *(QualityExample(n, text) for n, text in enumerate(TEXTS, 1)),
    QualityExample(4, " and a reference", "A prompt"),
]


@cache
def checkpoint() -> Checkpoint:
    return tiny(num_hidden_layers=2)


@cache
def model() -> Llama:
    return Llama.from_pretrained(checkpoint())


@cache
def encoded() -> tuple[EncodedExample, ...]:
    return tuple(encode_examples(LINES, checkpoint(), LENGTH, "lines"))


def batches(layout: str) -> list[ForetoldBatch]:
    config = checkpoint().config
    return lay_out(passages(encoded(), LENGTH), layout, config.vocab_size, config.pad_token_id)


def foretold(run: LogitsOf, layout: str) -> ForetoldTexts:
    def refuse(number: int) -> Exception:
        return AssertionError(number)

    return foretell([run], batches(layout), len(LINES), lane="f32", refuse=refuse)


def runs(side: str) -> LogitsOf:
    if side == "jax":
        return logits_of_model(model())
    return logits_of_subject(TorchReference(checkpoint(), dtype="f32"), 2)


@pytest.mark.parametrize("side", ["jax", "torch"])
def test_padded_packed_and_single_agree(side: str) -> None:
    run = runs(side)
    first, *others = (foretold(run, layout) for layout in LAYOUTS)
    assert first.counts.tolist() == [len(TEXTS[0]) - 1, len(TEXTS[1]) - 1, len(TEXTS[2]) - 1, 16]
    for other in others:
        np.testing.assert_array_equal(first.counts, other.counts)
        # Sums of up to 45 losses of float32.
        np.testing.assert_allclose(first.losses, other.losses, rtol=2e-6)


def test_both_sides_agree() -> None:
    ours, theirs = (foretold(runs(side), "padded").losses for side in ("jax", "torch"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_layouts_are_what_they_are_called() -> None:
    padded, packed, single = (batches(layout) for layout in LAYOUTS)
    assert len(padded) == len(packed) == 1 and len(single) == len(passages(encoded(), LENGTH))
    assert not padded[0].inputs.valid.all() and padded[0].inputs.valid[:, -1].all()
    assert packed[0].inputs.segments is not None and packed[0].inputs.segments.max() > 2
    assert all(one.inputs.valid.all() and len(one.inputs.tokens) == 1 for one in single)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_mask_that_shows_too_much_is_seen(layout: str) -> None:
    """The control: pads seen where rows are padded, other documents where they are packed."""
    sound = foretold(logits_of_model(model()), layout).losses
    spec = masks.causal()
    if layout == "packed":  # positions of two documents are not compared by `causal()`
        spec = masks.causal(align="top_left") & masks.padding()
    spoilt = foretold(logits_of_model(model(), spec), layout).losses
    assert np.abs(spoilt - sound).max() > 0.01


def test_a_long_text_is_foretold_as_everywhere_else() -> None:
    """Each token counts the same, and each but the first is foretold once."""
    found = foretold(logits_of_model(model()), "padded")
    expected = perplexity_of(model(), encoded()[2].text, window=LENGTH - 1)
    assert np.exp(found.losses[0, 2] / found.counts[2]) == pytest.approx(expected, rel=1e-6)


def test_a_reference_is_foretold_after_its_prompt() -> None:
    one = encoded()[3]
    (part,) = [part for part in passages(encoded(), LENGTH) if part.example == 3]
    assert (part.ids, part.first) == (one.prompt + one.text, len(one.prompt))
    positions = np.arange(len(part.ids), dtype=np.int32)[None]
    tokens = masks.Tokens(positions, np.ones_like(positions, bool))
    bound = masks.causal().bind(tokens, tokens)
    ids = jax.device_put(np.array([part.ids], np.int32))
    logits = model()(ids, positions=jax.device_put(positions), mask=bound)[0][0]
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(part.ids) - 1), part.ids[1:]]
    found = foretold(logits_of_model(model()), "packed").losses[0, 3]
    assert found == pytest.approx(losses[len(one.prompt) - 1 :].sum(), rel=1e-5)


def test_two_models_are_compared_token_by_token() -> None:
    def refuse(number: int) -> Exception:
        return AssertionError(number)

    run, config = logits_of_model(model()), checkpoint().config
    parts = lay_out(passages(encoded(), LENGTH), "padded", config.vocab_size, config.pad_token_id)
    same = foretell([run, run], parts, len(LINES), lane="f32", refuse=refuse)
    assert same.figures is not None and same.figures.kl_max == 0
    assert same.figures.tokens == same.counts.sum() == same.figures.foretold
    np.testing.assert_array_equal(same.losses[0], same.losses[1])
    other = logits_of_model(model(), masks.causal())
    apart = foretell([run, other], parts, len(LINES), lane="f32", refuse=refuse)
    assert apart.figures is not None and apart.figures.kl_max > 1e-3
    total = apart.losses.sum(axis=1) / apart.counts.sum()
    assert apart.figures.reference_perplexity == pytest.approx(np.exp(total[0]))
    assert apart.figures.perplexity == pytest.approx(np.exp(total[1]))
