"""An exact model is silent whichever of its taps are named, and a wrong one is not.

Between two named taps several operators run, so the figure at the second one is a chain's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from jaxllama.checkpoint import Checkpoint, tiny
from parity.lineup import lineup, summed_taps
from parity.lockstep import walk
from parity.noise.operators import SummedTaps
from parity.result import TapRow
from parity.scenarios import Inputs, scenario
from parity.selftest.memo import Memo
from parity.subjects.base import Arrays, Run
from parity.subjects.torch_reference import TorchReference
from parity.taps import AXES, HEAD_TAPS, LAYER_TAPS, split_name

LANES = ("f64", "f32", "bf16")
KINDS = ("rope.inv_freq", "embed", *(f"layers.{tap}" for tap in LAYER_TAPS), *HEAD_TAPS)
ALWAYS = {"positions", "mask"}  # without which a subject is told nothing


class Otherwise(TorchReference):
    """The same model by other formulas and other orders of summing."""

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == torch.bfloat16:  # the library sums those in float32 and rounds once
            return a @ b
        third = -(-a.shape[-1] // 3)
        parts = zip(a.split(third, -1), b.split(third, -2), strict=True)
        return torch.stack([x @ y for x, y in parts]).sum(0)

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.to(self.wide)
        mean = (wide * wide).sum(-1, keepdim=True) / x.shape[-1] + self.config.rms_norm_eps
        return (wide * mean.rsqrt()).to(x.dtype) * self.weight(f"{name}.weight").to(x.dtype)

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        scores = scores.masked_fill(~mask[:, None], -math.inf)
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        return (powers / powers.sum(-1, keepdim=True)).nan_to_num(0.0)

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return (
            gate * up * gate.sigmoid()
            if gate.dtype != torch.bfloat16
            else super().activation(gate, up)
        )


class WrongEps(Otherwise):
    def __init__(self, checkpoint: Checkpoint, *, dtype: str) -> None:
        config = checkpoint.config.replace(rms_norm_eps=1e-3)
        super().__init__(checkpoint, dtype=dtype, config=config)


class Named:
    """A subject that names some of its taps, shows those alone and is given those alone."""

    can_force = True

    def __init__(self, subject: TorchReference, named: set[str]) -> None:
        self._subject, self._named = subject, named | ALWAYS
        self.name, self.dtype = subject.name, subject.dtype
        self.internal_dtype = subject.internal_dtype
        self.absent = frozenset(AXES) - self._named

    def start(self, inputs: Inputs) -> NamedRun:
        return NamedRun(self._subject.start(inputs), self._named)


class NamedRun:
    def __init__(self, run: Run, named: set[str]) -> None:
        self._run, self._named = run, named

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        shown = self._run.step(self._own(force or {}))
        return self._own(shown)

    def _own(self, taps: Mapping[str, np.ndarray]) -> Arrays:
        return {n: value for n, value in taps.items() if split_name(n)[0] in self._named}


class Judged:
    """Judges subsets of one model's taps beside a reference that is run once."""

    def __init__(self, length: int, model: type[TorchReference] = Otherwise) -> None:
        self.checkpoint = tiny(num_hidden_layers=2, vocab_size=300)
        config = self.checkpoint.config
        encode = lambda text: [byte % 300 for byte in text.encode()]  # noqa: E731
        self.inputs = scenario("causal", encode, config, length=length)
        reference = TorchReference(self.checkpoint, dtype="f64")
        self.gold = Memo(reference)
        self.summed: SummedTaps | None = summed_taps(reference)
        self.models = {lane: model(self.checkpoint, dtype=lane) for lane in LANES}

    def rows(self, named: Sequence[str]) -> list[TapRow]:
        subjects = {lane: Named(model, set(named)) for lane, model in self.models.items()}
        entries = lineup(self.checkpoint, self.gold, subjects, (), ("isolated",))
        return walk(entries, [self.inputs], self.gold, ("isolated",), 2, summed=self.summed).rows

    def alarms(self, named: Sequence[str]) -> list[str]:
        return [
            f"{named}: {row.lane} {row.tap} {row.rho:.1f}/{row.limit:g} "
            f"{row.peak_rho:.1f}/{row.peak_limit:g} {row.problems}"
            for row in self.rows(named)
            if not row.passed
        ]


def _subsets() -> list[tuple[str, ...]]:
    rng = np.random.default_rng(12)
    drawn = [rng.random(len(KINDS)) < rng.uniform(0.1, 0.9) for _ in range(200)]
    return [
        *itertools.combinations(KINDS, 1),
        *itertools.combinations(KINDS, 2),
        *(tuple(itertools.compress(KINDS, one)) for one in drawn),
    ]


@pytest.mark.parametrize("length", [7, 61])
def test_an_exact_model_is_silent_whatever_it_names(length: int) -> None:
    torch.set_num_threads(1)
    judged = Judged(length)
    assert [alarm for named in _subsets() for alarm in judged.alarms(named)] == []


def test_a_wrong_model_is_found_whatever_it_names() -> None:
    judged = Judged(7, WrongEps)
    for named in [("logits",), ("layers.mlp_act",), ("norm", "layers.q_rope"), KINDS]:
        assert any(row.lane == "f64" and not row.passed for row in judged.rows(named)), named


def test_the_limit_of_one_operator_alarms_on_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: judged as before, the exact model is called divergent."""
    monkeypatch.setattr("parity.judge.runs_one_operator", lambda name, absent: True)
    monkeypatch.setattr("parity.lineup.runs_chains", lambda absent: False)
    monkeypatch.setattr("parity.lockstep._unnamed", lambda present: frozenset())
    judged = Judged(61)
    judged.summed = None
    assert any(judged.alarms([kind]) for kind in KINDS)
