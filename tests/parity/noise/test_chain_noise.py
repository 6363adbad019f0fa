"""An exact model is silent whichever of its taps are named, and a wrong one is not.

Between two named taps several operators run, so the figure at the second one is a chain's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jaxllama.checkpoint import Checkpoint, tiny
from parity.comparison.difference import TapDifference
from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import compare_tap
from parity.inputs import Inputs
from parity.lockstep.engine import run_lockstep
from parity.lockstep.setup import participants_for, summed_taps
from parity.noise.operators import SummedTaps
from parity.result import TapResult
from parity.scenarios import scenario
from parity.selftest.cached_reference import CachedReference
from parity.subjects.base import Arrays, stage_taps
from parity.subjects.torch.arrays import to_numpy, to_torch
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import AXES, HEAD_TAPS, LAYER_TAPS, OPERANDS, split_name

pytestmark = pytest.mark.ill_typed  # unchecked: six million calls of small functions
LANES = ("f64", "f32", "bf16")
KINDS = ("rope.inv_freq", "embed", *(f"layers.{tap}" for tap in LAYER_TAPS), *HEAD_TAPS)
ALWAYS = {"positions", "mask"}  # without which a subject is told nothing
DEPTH = 2

# A tap, and of what it was computed: its operands' keys, or that they were given.
Key = tuple[str, tuple[Any, ...]]


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


class Operators:
    """A model's taps, each computed of the nearest taps that are given; none is computed twice.

    One recording of operators so serves every subset of names: what lies between the same two taps
    is the same, whatever else is named.
    """

    def __init__(self, model: TorchReference, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self._known: dict[Key, Tensor] = {}
        self._shown: dict[Key, np.ndarray] = {}
        self.given: dict[str, Tensor] = {}

    def tap(self, name: str, named: frozenset[str]) -> np.ndarray:
        """Return a tap as a run that is given the named kinds shows it."""
        key = _key(name, named)
        if key not in self._shown:
            self._shown[key] = to_numpy(self._value(name, named))
        return self._shown[key]

    def _value(self, name: str, named: frozenset[str]) -> Tensor:
        key = _key(name, named)
        if key not in self._known:
            operands = [
                self.given[one] if split_name(one)[0] in named else self._value(one, named)
                for one in _operands(name)
            ]
            with torch.no_grad():
                self._known[key] = self._computed(name, *operands)
        return self._known[key]

    def _computed(self, name: str, *x: Tensor) -> Tensor:
        m, (kind, layer) = self.model, split_name(name)
        short, prefix = kind.removeprefix("layers."), f"model.layers.{layer}"
        split = self.inputs.tokens.shape
        mask = to_torch(self.inputs.mask)
        if short == "rope.inv_freq":
            return m.inv_freq().to(m.wide)
        if short == "embed":
            return m.embed(to_torch(self.inputs.tokens.astype(np.int64)))
        if short == "input":
            return x[0]
        if short in ("input_layernorm", "post_attention_layernorm"):
            return m.rms_norm(x[0], f"{prefix}.{short}")
        if short in ("q_proj", "k_proj", "v_proj"):
            return m.linear(x[0], f"{prefix}.self_attn.{short}").view(*split, -1, m.config.head_dim)
        if short in ("q_rope", "k_rope"):
            return m.rotate(x[0], *m.angles(x[1], to_torch(self.inputs.positions)))
        if short == "attn_scores":
            return m.scores(x[0], x[1][:, :, m.kv_head_of_query()])
        if short == "attn_probs":
            return m.probs(x[0], mask)
        if short == "attn_context":
            v = x[1][:, :, m.kv_head_of_query()]
            return m.matmul(x[0].to(v.dtype), v.transpose(1, 2)).transpose(1, 2)
        if short == "o_proj":
            return m.linear(x[0].reshape(*split, -1), f"{prefix}.self_attn.o_proj")
        if short in ("post_attention", "output"):
            return x[0] + x[1]
        if short == "mlp_act":
            return m.activation(*x)
        if short in ("gate_proj", "up_proj", "down_proj"):
            return m.linear(x[0], f"{prefix}.mlp.{short}")
        if short == "norm":
            return m.rms_norm(x[0], "model.norm")
        return m.linear(x[0].to(m.wide), "lm_head")

    def give(self, reference: Mapping[str, np.ndarray]) -> None:
        """Take the reference's values, each in the dtype of the value in whose place it stands."""
        nothing = frozenset[str]()
        for name, value in reference.items():
            if split_name(name)[0] not in ALWAYS:
                self.given[name] = to_torch(value).to(self._value(name, nothing).dtype)


@cache
def _operands(name: str) -> tuple[str, ...]:
    kind, layer = split_name(name)
    if kind == "layers.input":
        return ("embed",) if layer == 0 else (f"layers.{(layer or 0) - 1}.output",)
    if kind == "norm":
        return (f"layers.{DEPTH - 1}.output",)
    return tuple(one.replace("layers.", f"layers.{layer}.", 1) for one in OPERANDS.get(kind, ()))


@lru_cache(maxsize=1 << 16)
def _key(name: str, named: frozenset[str]) -> Key:
    """Return what a value is computed from: the taps before it that a run is given."""
    return name, tuple(
        ("given", one) if split_name(one)[0] in named else _key(one, named)
        for one in _operands(name)
    )


class Named:
    """A subject, or what gives its noise: names some taps, shows and is given those alone."""

    can_force = True

    def __init__(self, operators: Operators, named: set[str], *, shows: bool = True) -> None:
        self._operators, self._named = operators, frozenset(named)
        model = operators.model
        self.name, self.dtype, self.internal_dtype = model.name, model.dtype, model.internal_dtype
        self.absent = frozenset(AXES) - self._named - ALWAYS if shows else frozenset[str]()

    def start(self, inputs: Inputs) -> NamedRun:
        return NamedRun(self._operators, self._named)


class NamedRun:
    def __init__(self, operators: Operators, named: frozenset[str]) -> None:
        self._operators, self._named, self._stage = operators, named, 0

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        inputs = self._operators.inputs
        setup = {"positions": inputs.positions, "mask": inputs.mask} if self._stage == 0 else {}
        names = stage_taps(self._stage, DEPTH)
        self._stage += 1
        return setup | {
            name: self._operators.tap(name, self._named)
            for name in names
            if split_name(name)[0] in self._named
        }


class Judged:
    """Judges subsets of one model's taps beside a reference that is run once."""

    def __init__(self, length: int, model: type[TorchReference] = Otherwise) -> None:
        self.checkpoint = tiny(num_hidden_layers=DEPTH, vocab_size=300)
        config = self.checkpoint.config
        encode = lambda text: [byte % 300 for byte in text.encode()]  # noqa: E731
        self.inputs = scenario("causal", encode, config, length=length)
        reference = TorchReference(self.checkpoint, dtype="f64")
        self.reference = CachedReference(reference)
        self.summed: SummedTaps | None = summed_taps(reference)
        run = self.reference.start(self.inputs)
        self._reference = {name: x for _ in range(DEPTH + 2) for name, x in run.step().items()}
        self._recorded: dict[tuple[str, str], Operators] = {}
        self._model = model
        self._distances: dict[tuple[int, int], TapDifference] = {}

    def operators(self, dtype: str, variant: str | None = None) -> Operators:
        """Return what the model under judgement computes, or a variant of the reference."""
        if (dtype, variant or "") not in self._recorded:
            made = (
                self._model(self.checkpoint, dtype=dtype)
                if variant is None
                else TorchReference(self.checkpoint, dtype=dtype, variant=variant)  # type: ignore[arg-type]
            )
            recorded = Operators(made, self.inputs)
            recorded.give(self._reference)
            self._recorded[dtype, variant or ""] = recorded
        return self._recorded[dtype, variant or ""]

    def rows(self, named: Sequence[str]) -> list[TapResult]:
        kinds = set(named)
        subjects = {lane: Named(self.operators(lane), kinds) for lane in LANES}
        asked = participants_for(self.checkpoint, self.reference, subjects, (), ("isolated",))
        participants = {
            lane: [
                replace(one, subject=self._noise(one.subject, kinds))
                if isinstance(one.subject, TorchReference)
                else one
                for one in present
            ]
            for lane, present in asked.items()
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("parity.lockstep.engine.compare_tap", self._against)
            return run_lockstep(
                participants,
                [self.inputs],
                self.reference,
                ("isolated",),
                DEPTH,
                summed=self.summed,
            ).rows

    def _noise(self, subject: TorchReference, kinds: set[str]) -> Named:
        return Named(self.operators(subject.dtype, subject.variant), kinds, shows=False)

    def _against(
        self, reference: ReferenceTap, array: np.ndarray, *, locate: bool = True
    ) -> TapDifference:
        """Compare what is the same once: views of arrays that live as long as this does."""
        key = reference.array.ctypes.data, array.ctypes.data
        if key not in self._distances:
            self._distances[key] = compare_tap(reference, array, locate=locate)
        found = self._distances[key]
        return replace(found, problems=list(found.problems), facts=dict(found.facts))

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


def test_what_is_recorded_is_what_a_run_that_is_given_values_shows() -> None:
    judged = Judged(7)
    for named in [("layers.q_proj", "layers.mlp_act"), ("logits", "layers.attn_probs"), KINDS]:
        for lane in LANES:
            run = Otherwise(judged.checkpoint, dtype=lane).start(judged.inputs)
            own = NamedRun(judged.operators(lane), frozenset(named))
            for stage in range(DEPTH + 2):
                given = {
                    name: judged._reference[name]
                    for name in stage_taps(stage, DEPTH)
                    if split_name(name)[0] in {*named, *ALWAYS}
                }
                shown = run.step(given)
                for name, value in own.step().items():
                    assert value.dtype == shown[name].dtype, name
                    assert np.array_equal(value, shown[name]), (lane, named, name)


def test_a_wrong_model_is_found_whatever_it_names() -> None:
    judged = Judged(7, WrongEps)
    for named in [("logits",), ("layers.mlp_act",), ("norm", "layers.q_rope"), KINDS]:
        assert any(row.lane == "f64" and not row.passed for row in judged.rows(named)), named


def test_the_limit_of_one_operator_alarms_on_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: judged as before, the exact model is called divergent."""
    monkeypatch.setattr("parity.lockstep.comparator.runs_one_operator", lambda name, absent: True)
    monkeypatch.setattr("parity.lockstep.setup.runs_chains", lambda absent: False)
    judged = Judged(61)
    judged.summed = None
    given_all = partial(judged._noise, kinds=set(KINDS))
    monkeypatch.setattr(judged, "_noise", lambda subject, kinds: given_all(subject))
    assert any(judged.alarms([kind]) for kind in KINDS)
