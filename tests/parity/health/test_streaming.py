"""Of the layers that are measured one alone has its maps in memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

import parity
from jaxllama.checkpoint import load_model
from jaxllama.checkpoint.samples import tiny
from parity.health import measure
from parity.subjects.jaxllama.subject import JaxLlama

STAGES = 1 + 5 + 1  # embedding, layers, head


class Noted:
    """A subject that notes, before each stage, how many arrays of maps are held of those before."""

    def __init__(self, subject: Any) -> None:
        self._subject, self.held = subject, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)

    def start(self, inputs: Any) -> NotedRun:
        return NotedRun(self._subject.start(inputs), self.held)


class NotedRun:
    """One pass of it."""

    def __init__(self, run: Any, held: list[int]) -> None:
        self._run, self._held, self._shown = run, held, list[Any]()

    def step(self, force: Any = None) -> Any:
        self._held.append(sum(one() is not None for one in self._shown))
        taps = self._run.step()
        maps = ("attn_probs", "attn_scores")
        self._shown += [weakref.ref(owner(taps[name])) for name in taps if name.endswith(maps)]
        return taps


def owner(array: Any) -> Any:
    """Return what an array's numbers lie in: views of it keep that, and not the array."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def held(subject: Any) -> list[int]:
    noted = Noted(subject)
    parity.check_health("tiny", subject=noted, length=24, gradients=False)
    assert len(noted.held) == STAGES
    return noted.held


def test_the_maps_of_a_layer_are_gone_before_the_next() -> None:
    assert held(JaxLlama(load_model(tiny(), dtype="float32"), "f32")) == [0] * STAGES


def test_maps_that_are_kept_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, figures = [], measure.layer_figures

    def keeping(taps: Any, *rest: Any) -> Any:
        kept.append(taps)
        return figures(taps, *rest)

    monkeypatch.setattr(measure, "layer_figures", keeping)
    assert held(JaxLlama(load_model(tiny(), dtype="float32"), "f32")) == [0, 0, 2, 4, 6, 8, 10]
