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
def inputs_of(name: str) -> Inputs:
    ids = [(7 * i) % 250 for i in range(90)]
    return scenario(name, list, CHECKPOINT.config, length=13, prompt=ids)


def explained(
    subject: Subject,
    name: str = "left_padded",
    *,
    cached: bool = False,
    others: Sequence[str] = ("right_padded",),
) -> CauseReport:
    """Return what is said of a subject, on one scenario and others."""

    def recorded(name: str) -> Recording:
        inputs = inputs_of(name)
        return record(subject, inputs, decode_chunks(inputs) if cached else None, LAYERS)

    elsewhere = Elsewhere([recorded(other) for other in others])
    found = diagnose(recorded(name), CHECKPOINT, elsewhere=elsewhere)
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
