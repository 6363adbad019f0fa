"""Faults that somebody wrote who knew nothing of the edits: in some layers or calls alone, over
the wrong axis, of another layer's cache.

Subjects are the reference with a method overridden: faults in code, apart from what is to find
them.

Shapes: B batch, T queries, S keys, N query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from jaxllama.checkpoint.samples import tiny
from parity.diagnose.elsewhere import Elsewhere
from parity.diagnose.recording import Recording, record
from parity.diagnose.search import diagnose
from parity.inputs import Inputs, decode_chunks
from parity.result import CauseReport
from parity.scenarios import scenario
from parity.subjects.base import Subject
from parity.subjects.torch_reference.model import LayerContext
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = tiny(num_hidden_layers=3)
LAYERS = CHECKPOINT.config.num_hidden_layers


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def inputs_of(name: str, length: int = 13) -> Inputs:
    ids = [(7 * i) % 250 for i in range(90)]
    return scenario(name, list, CHECKPOINT.config, length=length, prompt=ids[:length])


def explained(
    subject: Subject,
    name: str = "left_padded",
    *,
    cached: bool = False,
    others: Sequence[str] = ("right_padded",),
    length: int = 13,
    length_elsewhere: int = 13,
) -> CauseReport:
    """Return what is said of a subject, on one scenario of `length` columns and on others."""

    def recorded(name: str, length: int) -> Recording:
        inputs = inputs_of(name, length)
        return record(subject, inputs, decode_chunks(inputs) if cached else None, LAYERS)

    elsewhere = Elsewhere([recorded(other, length_elsewhere) for other in others])
    found = diagnose(recorded(name, length), CHECKPOINT, elsewhere=elsewhere)
    assert found is not None
    return found


# Of a mask [B T S], the columns fed before and the number of the layer.
Masking = Callable[[Tensor, int, int], Tensor]


class Masked(TorchReference):
    """Layers go by another mask than the call's."""

    def __init__(self, masking: Masking) -> None:
        super().__init__(CHECKPOINT)
        self.masking = masking

    def layer(self, i: int, x: Tensor, around: LayerContext, tap: Any) -> Tensor:
        T, S = around.mask.shape[1:]
        mask = self.masking(around.mask, S - T, i)
        return super().layer(i, x, replace(around, mask=mask), tap)


def columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each query's column [T 1] and each key's [1 S]."""
    T, S = mask.shape[1:]
    return torch.arange(S - T, S)[:, None], torch.arange(S)[None, :]


def windowed(mask: Tensor, start: int, layer: int) -> Tensor:
    q, k = columns(mask)
    return mask & (q - k < 5) if layer in (0, 2) else mask


def sees_all(mask: Tensor, start: int, layer: int) -> Tensor:
    return mask.any(1, keepdim=True).expand_as(mask) if layer == 1 else mask


def top_left(mask: Tensor, start: int, layer: int) -> Tensor:
    if not start or mask.shape[1] == 1:
        return mask
    return torch.tril(torch.ones_like(mask)) & mask.any(1, keepdim=True)


def cut_top_left(mask: Tensor, start: int, layer: int) -> Tensor:
    """Keep of what is seen the slots of a triangle that starts at slot 0."""
    if not start or mask.shape[1] == 1:
        return mask
    slot = mask.any(1, keepdim=True).long().cumsum(-1) - 1
    return mask & (slot <= torch.arange(mask.shape[1])[:, None])


def first_row(mask: Tensor, start: int, layer: int) -> Tensor:
    return mask[:1].expand_as(mask)


def next_row(mask: Tensor, start: int, layer: int) -> Tensor:
    return torch.cat([mask[:, 1:], mask[:, -1:]], 1)


def strict(first: int) -> Masking:
    def masking(mask: Tensor, start: int, layer: int) -> Tensor:
        q, k = columns(mask)
        return mask & (k < q) if start >= first else mask

    return masking


def test_a_window_in_some_layers_alone_is_named_with_them() -> None:
    found = explained(Masked(windowed))
    assert (found.id, found.confirmed) == ("mask-window", True)
    assert "window 5 in layers 0, 2" in found.summary and not found.others


def test_one_layer_without_causality_is_named() -> None:
    found = explained(Masked(sees_all))
    assert (found.id, found.confirmed) == ("mask-not-causal", True)
    assert "every real key visible in layer 1" in found.summary


def test_continuations_aligned_top_left_are_named() -> None:
    found = explained(Masked(top_left), "right_padded", cached=True)
    assert (found.id, found.confirmed) == ("mask-top-left", True)
    assert "in calls of several columns after the first alone" in found.summary


def test_continuations_cut_top_left_are_named() -> None:
    found = explained(Masked(cut_top_left), cached=True, length=17)
    assert (found.id, found.confirmed) == ("mask-top-left", True)
    assert "keys by slot, besides the right mask in calls of several" in found.summary


@pytest.mark.parametrize(
    ("masking", "cause", "said"),
    [
        (first_row, "mask-row-exchanged", "every row sees what the first does"),
        (next_row, "mask-off-by-one", "each query but the last sees what the next does"),
    ],
)
def test_masks_of_other_rows_are_named(masking: Masking, cause: str, said: str) -> None:
    others = ("right_padded", "packed")
    found = explained(Masked(masking), others=others)
    assert (found.id, found.confirmed) == (cause, True)
    assert said in found.summary


class InTwoScenarios(Masked):
    """A wrong activation everywhere, and a mask that is wrong where rows are padded on the left."""

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.gelu(gate) * up


def test_what_one_scenario_alone_shows_is_found_beside_what_all_show() -> None:
    found = explained(InTwoScenarios(first_row), "right_padded", others=("packed", "left_padded"))
    assert (found.id, found.confirmed) == ("activation", True)
    assert [one.id for one in found.others] == ["mask-row-exchanged"]
    alone = explained(InTwoScenarios(first_row), "right_padded", others=("causal",))
    assert (alone.id, alone.confirmed, alone.others) == ("activation", True, [])


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0, "keys j <= i - 1 visible)"),
        (1, "keys j <= i - 1 visible in calls after the first alone)"),
        (10, "keys j <= i - 1 visible in calls of one column alone)"),
    ],
    ids=["in all calls", "in later calls", "in single columns"],
)
def test_off_by_one_through_a_cache_is_named_with_its_calls(first: int, said: str) -> None:
    found = explained(Masked(strict(first)), cached=True)
    assert (found.id, found.confirmed) == ("mask-strict", True)
    assert said in found.summary


class Blockwise(TorchReference):
    """Softmax of blocks of keys, each over its own sum, and never merged."""

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        blocks = zip(scores.split(5, -1), mask.split(5, -1), strict=True)
        return torch.cat([super(Blockwise, self).probs(*one) for one in blocks], -1)


class OverTokens(TorchReference):
    """Norms by the mean square over tokens, or over other axes."""

    axes: tuple[int, ...] = (1,)

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        rms = (x.square().mean(self.axes, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return x / rms * self.weight(f"{name}.weight").to(x.dtype)


class Restarted(TorchReference):
    """Positions by a rule of their own."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__(CHECKPOINT)
        self.rule = rule

    def setup(self, tokens: Any, positions: Tensor, *rest: Any) -> Any:
        return super().setup(tokens, self.rule(positions), *rest)


class Hidden(Restarted):
    """The same, of the rotation alone: what is shown are the right positions."""

    def setup(self, tokens: Any, positions: Tensor, *rest: Any) -> Any:
        return TorchReference.setup(self, tokens, positions, *rest)

    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().angles(freq, self.rule(positions))


class Mixed(TorchReference):
    """Rows and tokens exchanged where they are to be joined."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return y.transpose(0, 1).reshape(y.shape) if name.endswith("o_proj") else y


class OfLayer(TorchReference):
    """Odd layers attend to the keys and values of the layer before."""

    def layer(self, i: int, x: Tensor, around: LayerContext, tap: Any) -> Tensor:
        self.number = i
        return super().layer(i, x, around, tap)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Any) -> Tensor:
        if self.number % 2:
            k, v = self.before
        self.before = k, v
        return super().attend(q, k, v, mask, tap)


def test_softmax_in_blocks_is_explained() -> None:
    found = explained(Blockwise(CHECKPOINT))
    assert found.confirmed
    assert "softmax is softmax over axis -1, in blocks of 5 by themselves" in found.summary


def test_norms_over_tokens_are_explained() -> None:
    found = explained(OverTokens(CHECKPOINT))
    assert found.confirmed and "mean is mean over axis -2" in found.summary
    both = OverTokens(CHECKPOINT)
    both.axes = (1, 2)
    found = explained(both)
    assert found.confirmed and "mean is mean over axes -2 and -1" in found.summary


@pytest.mark.parametrize(
    ("rule", "name", "cached", "said"),
    [
        (
            lambda p: p.clamp(max=p.shape[1] - 1),
            "left_padded",
            True,
            "positions held below the call's length",
        ),
        (lambda p: p % 7, "left_padded", False, "positions start anew after 7"),
        (lambda p: p[:1].expand_as(p), "long_positions", False, "row 0's positions in every row"),
    ],
)
def test_positions_by_another_rule_are_named(rule: Any, name: str, cached: bool, said: str) -> None:
    found = explained(Restarted(rule), name, cached=cached)
    assert (found.id, found.confirmed) == ("position-offset", True)
    assert said in found.summary


def test_positions_that_the_rotation_alone_has_are_named() -> None:
    found = explained(Hidden(lambda p: p[:1].expand_as(p)), "long_positions")
    assert (found.id, found.confirmed) == ("position-offset", True)
    assert "row 0's positions in every row" in found.summary
    # None at all, and multiples of the right ones, are other rotations.
    assert explained(Hidden(torch.zeros_like)).id == "rope-missing"
    assert explained(Hidden(lambda p: 2 * p)).id != "position-offset"


def test_rows_and_tokens_mixed_are_explained() -> None:
    found = explained(Mixed(CHECKPOINT))
    assert found.confirmed and "laid out as TBD and read as BTD" in found.summary


def test_another_layers_keys_and_values_are_explained() -> None:
    found = explained(OfLayer(CHECKPOINT))
    assert found.confirmed
    assert "keys of layer 0 in place of keys in layer 1" in found.summary
    assert "values of layer 0 in place of values in layer 1" in found.summary


class MaskedAfter(TorchReference):
    """Weights of hidden keys are taken away, and the others not made to add up to 1.

    Its pads see the first real key, which is nobody's business but mixes with the fault: what is
    after a row's tokens would be another mask else.
    """

    def setup(self, tokens: Any, positions: Tensor, mask: Tensor, *rest: Any) -> Any:
        first = mask.any(1).long().argmax(1)[:, None, None]
        pads = ~mask.any(2, keepdim=True) & (torch.arange(mask.shape[2]) == first)
        return super().setup(tokens, positions, mask | pads, *rest)

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.softmax(-1) * mask[:, None]


@pytest.mark.parametrize("cached", [False, True])
def test_a_mask_after_the_softmax_is_one_edit(cached: bool) -> None:
    found = explained(MaskedAfter(CHECKPOINT), cached=cached)
    assert (found.id, found.confirmed) == ("softmax-renormalised", True)
    assert "masked after softmax" in found.summary and " and " not in found.summary
    assert not found.others


class Shared(TorchReference):
    """All layers write to one cache, each over the one before."""

    def setup(self, tokens: Any, positions: Tensor, mask: Tensor, cache: Any, tap: Any) -> Any:
        x, around = super().setup(tokens, positions, mask, cache, tap)
        if cache is not None:
            around = OneCache(**vars(around))
        return x, around


class OneCache(LayerContext):
    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        past = self.cache.get(0, (k[:, :0], v[:, :0]))
        start = self.mask.shape[2] - k.shape[1]
        k, v = (torch.cat([p[:, :start], new], 1) for p, new in zip(past, (k, v), strict=True))
        self.cache[0] = self.cache[layer] = k, v
        return k, v


def test_layers_that_share_one_cache_are_named() -> None:
    found = explained(Shared(CHECKPOINT), cached=True)
    assert (found.id, found.confirmed) == ("cache-layer", True)
    assert "all layers share one cache, which each writes over" in found.summary


class ReadFirst(TorchReference):
    """Single tokens read the cache before they are written to it."""

    def setup(self, tokens: Any, positions: Tensor, mask: Tensor, cache: Any, tap: Any) -> Any:
        x, around = super().setup(tokens, positions, mask, cache, tap)
        if cache is not None:
            around = CacheReadFirst(**vars(around))
        return x, around


class CacheReadFirst(LayerContext):
    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        past = self.cache.get(-1 - layer, (k[:, :0], v[:, :0]))  # below 0: what nobody is shown
        made = zip(past, (k, v), strict=True)
        k, v = self.cache[-1 - layer] = tuple(torch.cat(pair, 1) for pair in made)  # type: ignore[assignment]
        if self.mask.shape[1] == 1:
            k, v = (torch.cat([p, torch.zeros_like(p[:, :1])], 1) for p in past)
        self.cache[layer] = k, v
        return k, v


def test_a_cache_read_before_it_is_written_is_named() -> None:
    found = explained(ReadFirst(CHECKPOINT), cached=True)
    assert (found.id, found.confirmed) == ("cache-not-written", True)
    assert "of single tokens read before they are written" in found.summary


class SeenWhole(TorchReference):
    """Single tokens see all slots of a cache that has one for every column."""

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Any:
        self.slots = inputs.tokens.shape[1]
        return super().start_decode(inputs, chunks)

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        if scores.shape[2] > 1:
            return super().probs(scores, mask)
        terms = scores.exp() * mask[:, None]
        unwritten = self.slots - mask[:, None].sum(-1, keepdim=True)
        return terms / (terms.sum(-1, keepdim=True) + unwritten)


def test_a_cache_seen_whole_is_named_whatever_its_length() -> None:
    found = explained(SeenWhole(CHECKPOINT), cached=True, length_elsewhere=11)
    assert (found.id, found.confirmed) == ("cache-unwritten-visible", True)
    assert "all of the scenario's slots seen in single tokens" in found.summary


class Behind(TorchReference):
    """A cache's counter is one behind: what follows overwrites a row's last token."""

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Any:
        self.valid = torch.from_numpy(inputs.valid)
        return super().start_decode(inputs, chunks)

    def setup(self, tokens: Any, positions: Tensor, mask: Tensor, cache: Any, tap: Any) -> Any:
        T, S = mask.shape[1:]
        if T < S:  # a later call: of the newest slot nothing is known, and all else is one back
            k_valid, (q, k) = self.valid[:, :S], columns(mask)
            slot = k_valid.cumsum(1) - 1
            newest = (slot == slot[:, -1:]) & k_valid
            held = k_valid[:, : S - T].any(1)[:, None, None]
            seen = k_valid[:, None] & ((k < q) | newest[:, None])
            mask = torch.where(held, seen & self.valid[:, S - T : S, None], mask)
        x, around = super().setup(tokens, positions, mask, cache, tap)
        if cache is not None:
            around = CacheBehind(**vars(around))
            around.valid = self.valid[:, :S]
        return x, around


class CacheBehind(LayerContext):
    valid: Tensor

    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        T, S = self.mask.shape[1:]
        rows = torch.arange(len(k))[:, None]
        held = self.valid[:, : S - T].sum(1)[:, None]
        own = self.valid.cumsum(1) - 1
        at = own[:, S - T :] - (held > 0).long()
        at = torch.where(self.valid[:, S - T :], at, S)
        past = self.cache.get(-1 - layer)  # below 0: what nobody is shown
        slots = []
        for which, new in enumerate((k, v)):
            held_slots = new.new_zeros(len(k), S + 1, *new.shape[2:])  # the last takes what is left
            if past is not None:
                held_slots[:, : S - T] = past[which][:, :-1]
            held_slots[rows, at] = new
            slots.append(held_slots)
        self.cache[-1 - layer] = slots[0], slots[1]
        k, v = (one[rows, own.clamp(min=0)] for one in slots)
        self.cache[layer] = k, v
        return k, v


def test_a_counter_that_is_behind_is_named_with_its_mask() -> None:
    found = explained(Behind(CHECKPOINT), cached=True, length=17)
    assert (found.id, found.confirmed) == ("cache-slot-overwritten", True)
    assert "later calls of rows that hold tokens are written one slot back" in found.summary
    assert "mask: a call's keys known one slot back" in found.summary


class Online(TorchReference):
    """Softmax over blocks of four keys, whose sum is rescaled as the maximum rises, values not."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Any) -> Tensor:
        heads = self.kv_head_of_query()
        scores = tap("attn_scores", self.scores(q, k[:, :, heads]))
        tap("attn_probs", self.probs(scores, mask))
        hidden = scores.masked_fill(~mask[:, None], -torch.inf)
        high = hidden.new_full((*hidden.shape[:3], 1), torch.finfo(hidden.dtype).min)
        total, found = torch.zeros_like(high), torch.zeros_like(q.transpose(1, 2))
        for part, values in zip(hidden.split(4, -1), v[:, :, heads].split(4, 1), strict=True):
            higher = torch.maximum(high, part.amax(-1, keepdim=True))
            weights = (part - higher).exp()
            total = total * (high - higher).exp() + weights.sum(-1, keepdim=True)
            found, high = found + weights @ values.transpose(1, 2), higher
        found = found / total.clamp(min=torch.finfo(total.dtype).tiny)
        return tap("attn_context", found.transpose(1, 2))


def test_values_of_an_online_softmax_that_are_not_rescaled_are_named() -> None:
    found = explained(Online(CHECKPOINT))
    assert (found.id, found.confirmed) == ("softmax-merge", True)
    assert "values over blocks of 4 keys not rescaled" in found.summary
