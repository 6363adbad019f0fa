"""Faults of a cache's contents and of precision: each is named as itself, not as its neighbour.

Subjects are the PyTorch reference with one method overridden, or with a cache that forgets: code
apart from the causes that are to be found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from records import row
from torch import Tensor
from witnesses import inputs_for, small

from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import record
from parity.diagnose.search import diagnose, find_cause
from parity.inputs import Inputs
from parity.result import Divergence
from parity.subjects.torch_reference import model
from parity.subjects.torch_reference.model import LayerContext
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = small()
CONFIG, LAYERS = CHECKPOINT.config, CHECKPOINT.config.num_hidden_layers
CHUNKS = [5, 3, 1, 1]
COLUMNS = sum(CHUNKS)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch() -> Inputs:
    """Return three rows, the second shorter by three: it is padded in the middle."""
    tokens = np.random.default_rng(3).integers(5, CONFIG.vocab_size, (3, COLUMNS), dtype=np.int32)
    valid = np.ones((3, COLUMNS), bool)
    valid[1, 5:8] = False
    positions = np.where(valid, valid.cumsum(1) - 1, 0).astype(np.int32)
    lower = np.tril(np.ones((COLUMNS, COLUMNS), bool))
    mask = lower & valid[:, None, :] & valid[:, :, None]
    return Inputs("batch", tokens, positions, valid, mask)


INPUTS = batch()
Contents = tuple[Tensor, Tensor]


class Cache:
    """What stands in the place of `LayerContext.remember`, with the memory that it needs."""

    def __init__(self, wrong: Callable[[Cache, int, Tensor, Tensor], Contents]) -> None:
        self.wrong = wrong
        self.layers: dict[int, Contents] = {}
        self.buffers: dict[int, list[Tensor]] = {}
        self.around: LayerContext

    def remember(self, around: LayerContext, layer: int, k: Tensor, v: Tensor) -> Contents:
        assert around.cache is not None
        self.around = around
        around.cache[layer] = self.wrong(self, layer, k, v)
        return around.cache[layer]

    def appended(self, layer: int, k: Tensor, v: Tensor) -> Contents:
        past = self.layers.get(layer, (k[:, :0], v[:, :0]))
        self.layers[layer] = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        return self.layers[layer]

    def turned(self, k: Tensor, sign: int) -> Tensor:
        return TorchReference(CHECKPOINT).rotate(k, self.around.cos, sign * self.around.sin)


def unrotated(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
    return cache.appended(layer, cache.turned(k, -1), v)


def rotated_again(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
    return cache.appended(layer, cache.turned(k, 1), v)


def rounded(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
    return cache.appended(layer, k.bfloat16().to(k.dtype), v.bfloat16().to(v.dtype))


def exchanged(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
    return cache.appended(layer, v, k)


def without_single_values(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
    return cache.appended(layer, k, v if v.shape[1] > 1 else torch.zeros_like(v))


def of_the_layer_before(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
    """Layers write one further; what the last wrote comes a call late to the first."""
    cache.appended(layer, k, v)
    columns = cache.layers[layer][0].shape[1]
    found = []
    for made in cache.layers.get((layer - 1) % LAYERS, (k[:, :0], v[:, :0])):
        found.append(torch.zeros(len(k), columns, *k.shape[2:], dtype=k.dtype))
        found[-1][:, : made.shape[1]] = made
    return found[0], found[1]


def in_slots(shift: Callable[[int, int, int], int], flip: bool = False) -> Any:
    """Return a cache of slots, written a token at a time.

    Args:
        shift: slot of a token given its row's length, the longest row's, and the call's size.
        flip: turn the keys' rows after each single token.
    """

    def wrong(cache: Cache, layer: int, k: Tensor, v: Tensor) -> Contents:
        shape = len(k), COLUMNS, *k.shape[2:]
        buffers = cache.buffers.setdefault(layer, [torch.zeros(shape, dtype=k.dtype)] * 2)
        buffers = [buffer.clone() for buffer in buffers]
        start = cache.layers.get(layer, (k[:, :0], v))[0].shape[1]
        cache.appended(layer, k, v)
        stop = start + k.shape[1]
        lengths = INPUTS.valid[:, :start].sum(1)
        for b, length in enumerate(lengths.tolist()):
            at = shift(length, int(lengths.max()), k.shape[1])
            for column in range(start, stop):
                if INPUTS.valid[b, column] and at < COLUMNS:
                    for buffer, made in zip(buffers, (k, v), strict=True):
                        buffer[b, at] = made[b, column - start]
                at += int(INPUTS.valid[b, column])
        if flip and k.shape[1] == 1:
            buffers[0] = buffers[0].roll(1, 0)
        cache.buffers[layer] = buffers
        own = torch.from_numpy(np.maximum(INPUTS.valid[:, :stop].cumsum(1) - 1, 0))
        rows = torch.arange(len(k))[:, None]
        return buffers[0][rows, own], buffers[1][rows, own]

    return wrong


def diagnosed(subject: TorchReference, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        if wrong is not None:
            cache = Cache(wrong)
            patch.setattr(
                model.LayerContext, "remember", lambda a, i, k, v: cache.remember(a, i, k, v)
            )
        recording = record(subject, INPUTS, CHUNKS, LAYERS)
    return diagnose(recording, CHECKPOINT)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (unrotated, "cache-key-rotation"),
        (rotated_again, "cache-key-rotation"),
        (rounded, "cache-dtype"),
        (exchanged, "cache-exchanged"),
        (without_single_values, "cache-not-written"),
        (of_the_layer_before, "cache-layer"),
        (in_slots(lambda own, longest, size: longest), "cache-slot-shared"),
        (in_slots(lambda own, longest, size: own - (size == 1)), "cache-slot-overwritten"),
        (in_slots(lambda own, longest, size: own, flip=True), "cache-rows"),
    ],
)
def test_what_a_cache_holds_is_named(
    wrong: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = diagnosed(TorchReference(CHECKPOINT), wrong, monkeypatch)
    assert (found.id, found.confirmed, found.others) == (expected, True, [])


def test_a_right_cache_of_slots_has_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    right = in_slots(lambda own, longest, size: own)
    assert diagnosed(TorchReference(CHECKPOINT), right, monkeypatch) is None


class Unwritten(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Let queries see the cache to its end: rows of 12 slots."""
        stop = scores.shape[-1]
        more = (12 - INPUTS.valid[:, :stop].sum(1))[:, None, None, None]
        terms = scores.exp() * mask[:, None]
        return terms / (terms.sum(-1, keepdim=True) + torch.from_numpy(more))


class Averaged(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        new = scores.shape[-2]
        if scores.shape[-1] == new:
            return super().probs(scores, mask)
        own = torch.arange(scores.shape[-1]) >= scores.shape[-1] - new
        return (super().probs(scores, mask & own) + super().probs(scores, mask & ~own)) / 2


@pytest.mark.parametrize(
    ("subject", "expected"), [(Unwritten, "cache-unwritten-visible"), (Averaged, "softmax-merge")]
)
def test_what_a_cache_is_read_with_is_named(
    subject: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = diagnosed(subject(CHECKPOINT), None, monkeypatch)
    assert (found.id, found.confirmed, found.others) == (expected, True, [])


def bits(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(x.dtype)


class Products(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weight(f"{name}.weight").to(x.dtype)
        return bits(x, torch.bfloat16) @ bits(weight, torch.bfloat16).T


class Scores(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(bits(q, torch.bfloat16), bits(k, torch.bfloat16))


class Softmax(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        return super().probs(scores.float(), mask).to(scores.dtype)


class Logits(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return bits(y, torch.bfloat16) if name == "lm_head" else y


class Table(TorchReference):
    def inv_freq(self) -> Tensor:
        return bits(super().inv_freq(), torch.bfloat16)


class Planes(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        plane = torch.zeros_like(scores).masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        return (scores + (plane + plane)).softmax(-1)


@pytest.mark.parametrize(
    ("subject", "dtype", "name", "expected"),
    [
        (Products, "f32", "causal", "matmul-precision"),
        (Scores, "f32", "causal", "matmul-precision"),
        (Softmax, "f64", "causal", "softmax-precision"),
        (Logits, "f32", "causal", "logits-rounded"),
        (Table, "bf16", "long_positions", "rope-precision"),
        (Planes, "f64", "left_padded", "mask-empty-row"),
    ],
)
def test_too_few_bits_are_named(subject: Any, dtype: str, name: str, expected: str) -> None:
    recording = record(
        subject(CHECKPOINT, dtype=dtype), inputs_for(CHECKPOINT, name, 11), None, LAYERS
    )
    found = diagnose(recording, CHECKPOINT)
    assert found is not None
    assert (found.id, found.confirmed, found.others) == (expected, True, [])


def test_an_empty_row_is_borne_out_by_scenarios_that_have_none() -> None:
    inputs = [inputs_for(CHECKPOINT, name, 11) for name in ("causal", "left_padded")]
    divergent = row("layers.0.attn_probs", failed=True, lane="f64", scenario="left_padded")
    first = Divergence(divergent, "operator", ())
    subject = Planes(CHECKPOINT, dtype="f64")
    found = find_cause(first, [divergent], inputs, CHECKPOINT, lambda _: subject, lambda i: [])
    assert found is not None
    assert (found.id, found.confirmed, found.others) == ("mask-empty-row", True, [])


class Norms(TorchReference):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        """Sum squares one after another, without more bits."""
        total = torch.zeros(x.shape[:-1], dtype=x.dtype)
        for column in x.unbind(-1):
            total = total + column.square()
        root = (total / x.shape[-1] + self.config.rms_norm_eps).rsqrt()
        return x * root[..., None] * self.weight(f"{name}.weight").to(x.dtype)


def test_a_fault_that_only_the_references_inputs_show_is_named() -> None:
    wide = small(hidden_size=384, intermediate_size=40)
    inputs = inputs_for(wide, "causal", 11)
    subject = Norms(wide, dtype="bf16")
    divergent = row("layers.0.input_layernorm", failed=True, lane="bf16", mode="isolated")
    first = Divergence(divergent, "operator", ())
    found = find_cause(first, [divergent], [inputs], wide, lambda lane: subject, lambda i: [])
    assert found is not None
    assert (found.id, found.confirmed, found.others) == ("norm-upcast", True, [])
    # A subject that is run in one way alone has nothing to explain a pass that is run whole by.
    hidden = replace(first, row=replace(divergent, tap="logits", mode="production"))
    assert find_cause(hidden, [hidden.row], [inputs], wide, lambda _: subject, lambda i: []) is None
    # What differs in a batch with other scenarios, and not by itself, is said to be mixed.
    mixed = replace(first, row=row("layers.0.q_rope", failed=True, lane="f64", mode="free"))
    exact = TorchReference(wide)
    said = find_cause(mixed, [mixed.row], [inputs], wide, lambda _: exact, lambda i: [])
    assert said is not None and "share a batch, in none by itself" in said.summary
    honest = TorchReference(wide, dtype="bf16", variant="reordered")
    assert diagnose(record(honest, inputs, None, LAYERS, TorchReference(wide)), wide) is None


class Random(TorchReference):
    """Its head is another matrix, by `scale` times the embedding and the rest random."""

    share = 0.0

    def linear(self, x: Tensor, name: str) -> Tensor:
        if name != "model.embed_tokens":
            return super().linear(x, name)
        embedding = self.weight(f"{name}.weight").to(x.dtype)
        drawn = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))
        return x @ (self.share * embedding + (1 - self.share) * drawn.to(x.dtype)).T


class Stale(Random):
    share = 0.999


class Cooled(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return y / 0.9 if name == "model.embed_tokens" else y


@pytest.mark.parametrize(
    ("subject", "expected"),
    [(Random, "head-untied"), (Stale, "head-untied"), (Cooled, "logits-scale")],
)
def test_a_head_is_solved_on_other_inputs(subject: Any, expected: str) -> None:
    tied = small(tied=True)
    found = diagnose(record(subject(tied), inputs_for(tied, "causal", 11), None, LAYERS), tied)
    assert found is not None
    assert (found.id, found.confirmed, found.others) == (expected, True, [])


def test_without_faults_nudged_references_hold_the_same_values() -> None:
    reference = MutatedReference(CHECKPOINT)
    assert [v.variant for v in reference.noise_variants("f64")] == ["reordered"]
    assert [v.variant for v in reference.noise_variants("f32")] == ["reordered", "eager"]
