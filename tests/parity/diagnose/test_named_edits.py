"""Edits that have names: each is one that the search would find, and is told from others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from witnesses import small

from parity.diagnose.cause import catalogue
from parity.diagnose.compare_recording import compare_recording
from parity.diagnose.edits.edit import SOLVED, Edit
from parity.diagnose.edits.kinds import apply_edits, kinds
from parity.diagnose.edits.named import INPUT, NamedEdits, Pattern, instances
from parity.diagnose.edits.trial import OperatorTrial
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.mutations import Mutation
from parity.diagnose.recording import record
from parity.diagnose.search import diagnose
from parity.inputs import Inputs
from parity.result import CauseReport
from parity.scenarios import scenario
from parity.subjects.base import Subject
from parity.subjects.torch.arrays import Recorder
from parity.subjects.torch_reference.program import PROGRAM
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = small()
LAYERS = CHECKPOINT.config.num_hidden_layers
NAMES = [(id_, one) for id_, file in catalogue().items() for one in file.edits]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def inputs() -> Inputs:
    return scenario("left_padded", lambda text: list(text.encode()), CHECKPOINT.config, length=13)


@cache
def trial_at(tap: str) -> OperatorTrial:
    """Return an operator whose values are slightly off."""
    wrong = Mutation(tap, value=lambda site: site.value * 1.001)
    subject = MutatedReference(CHECKPOINT, [wrong])
    recording = record(subject, inputs(), None, LAYERS)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), recording.inputs)
    assert found.evidence is not None and found.evidence.short == tap
    assert found.evidence.trial is not None
    return found.evidence.trial


def named(subject: Subject) -> CauseReport:
    found = diagnose(record(subject, inputs(), None, LAYERS), CHECKPOINT)
    assert found is not None
    return found


OF_OPERATORS = [(c, n) for c, n in NAMES if not n.of]  # of masks: test_visibility.py


@pytest.mark.parametrize(
    ("cause", "one"), OF_OPERATORS, ids=[f"{c}:{n.said}" for c, n in OF_OPERATORS]
)
def test_a_name_is_of_edits_that_the_search_proposes(cause: str, one: NamedEdits) -> None:
    taps = [tap for tap in catalogue()[cause].cause.taps if tap in PROGRAM]
    assert any([*instances(trial_at(tap).few, one.edits)] for tap in taps)


def test_a_name_of_no_edit_is_seen() -> None:
    trial = trial_at("input_layernorm")
    assert not [*instances(trial.few, (Pattern("factor", "no such step"),))]
    assert not [*instances(trial.few, (Pattern("factor", "gain", ("-",)),))]


def test_every_name_is_told_from_the_others() -> None:
    """Put each into the operator: it makes a value that no other cause's name makes."""
    made: dict[str, list[tuple[str, Tensor]]] = {}
    for cause, one in OF_OPERATORS:
        if one.searched or one.scoped or cause == "activation-clipped":  # at the largest there is
            continue
        tap = next(t for t in catalogue()[cause].cause.taps if t in PROGRAM)
        few = trial_at(tap).few
        edits = next(iter(instances(few, one.edits)), None)
        if edits is None or any(edit.value == SOLVED for edit in edits):
            continue
        value = few.run(apply_edits(few.program, edits)).nan_to_num(7.0)
        assert not torch.equal(value, few.base.nan_to_num(7.0)), cause
        for other, known in made.setdefault(tap, []):
            assert other == cause or not torch.equal(value, known), f"{cause} is {other}"
        made[tap].append((cause, value))


class Capped(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return 3 * (super().scores(q, k) / 3).tanh()


class OtherEps(TorchReference):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        rms = (x.square().mean(-1, keepdim=True) + 3e-4).sqrt()
        return x / rms * self.weight(f"{name}.weight").to(x.dtype)


class EpsOutside(TorchReference):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        rms = x.square().mean(-1, keepdim=True).sqrt() + self.config.rms_norm_eps
        return x / rms * self.weight(f"{name}.weight").to(x.dtype)


class OtherScale(TorchReference):
    def scale(self) -> float:
        return 0.17


class SilentHeads(TorchReference):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Recorder) -> Tensor:
        return super().attend(q, k, v, mask, Silent(tap))


class Silent(Recorder):
    def __init__(self, tap: Recorder) -> None:
        self.tap = tap

    def __call__(self, name: str, value: Tensor, *views: Any, **named: Any) -> Tensor:
        if name == "attn_context":
            value = value.index_fill(2, torch.tensor([1, 4]), 0)
        return self.tap(name, value, *views, **named)


class Sink(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        hidden = scores.masked_fill(~mask[:, None], -torch.inf)
        padded = torch.nn.functional.pad(hidden, (0, 1)).softmax(-1)[..., :-1]
        return padded.masked_fill(~mask[:, None], 0)


class MovedHeads(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        if name.endswith("o_proj"):
            x = x.unflatten(-1, (-1, self.config.head_dim)).roll(3, 2).flatten(2)
        return super().linear(x, name)


SINGLE = {
    Capped: ("score-cap", "cap 3", "none"),
    OtherEps: ("norm-eps", "eps 0.0003", "1e-05"),
    EpsOutside: ("norm-eps", "rms + eps", "sqrt(mean square + eps)"),
    OtherScale: ("score-scale", "0.17", "0.25"),
    SilentHeads: ("head-silenced", "zero in head 1, 4 alone", "all heads"),
    Sink: ("softmax-sink", "exp / (1 + sum)", "exp / sum"),
    MovedHeads: ("head-merge", "", "heads in order"),
}


@pytest.mark.parametrize("subject", SINGLE, ids=lambda s: s.__name__)
def test_numbers_heads_and_operations_are_named(subject: Callable[..., Subject]) -> None:
    found, (cause, effective, configured) = named(subject(CHECKPOINT)), SINGLE[subject]
    assert (found.id, found.confirmed, found.configured) == (cause, True, configured)
    assert effective in found.effective
    assert not found.others


class ThetaAndRounded(TorchReference):
    def __init__(self, checkpoint: Any, **more: Any) -> None:
        config = checkpoint.config.replace(rope_theta=1e6)
        super().__init__(checkpoint, config=config, **more)

    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().angles(freq, positions)
        return cos.bfloat16().to(cos.dtype), sin.bfloat16().to(sin.dtype)


class ThetaUnscaled(TorchReference):
    def __init__(self, checkpoint: Any, **more: Any) -> None:
        config = checkpoint.config.replace(rope_theta=1e6, rope_scaling=None)
        super().__init__(checkpoint, config=config, **more)


class EpsAndCentred(OtherEps):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        return super().rms_norm(x - x.mean(-1, keepdim=True), name)


class SignAndRounded(TorchReference):
    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().angles(freq, positions)
        return cos.bfloat16().to(cos.dtype), -sin.bfloat16().to(sin.dtype)


class GeluOfUp(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.gelu(up) * gate


PAIRS = {
    ThetaAndRounded: {"rope-theta": "theta 1e+06", "rope-precision": "bfloat16"},
    ThetaUnscaled: {"rope-theta": "theta 1e+06", "rope-scaling": "none"},
    EpsAndCentred: {"norm-eps": "eps 0.0003", "norm-centred": "x - mean(x)"},
    SignAndRounded: {"rope-sign": "angle -f p", "rope-precision": "bfloat16"},
    GeluOfUp: {"gate-order": "silu(up) * gate", "activation": "gelu"},
}


@pytest.mark.parametrize("subject", PAIRS, ids=lambda s: s.__name__)
def test_of_two_faults_in_one_operator_both_are_named(subject: Callable[..., Subject]) -> None:
    found = named(subject(CHECKPOINT))
    assert found.confirmed
    assert {one.id: one.effective for one in (found, *found.others)} == PAIRS[subject]
    assert all(one.configured for one in (found, *found.others))


def test_patterns_tell_edits_apart() -> None:
    edit = Edit("q_rope", "operand", "rotated", ("0", "q_proj"))
    assert Pattern("operand", "rotated", ("0", INPUT)).fits(edit, "q_proj")
    assert not Pattern("operand", "rotated", ("0", INPUT)).fits(edit, "k_proj")
    assert Pattern("operand", ("other", "rotated")).fits(edit, "")
    assert not Pattern("order", "rotated").fits(edit, "")
    number = Edit("norm", "number", "eps", value=1e-6)
    assert Pattern("number", "eps", number=1e-6).fits(number, "")
    assert not Pattern("number", "eps", number=1e-3).fits(number, "")
    assert set(kinds()) >= {pattern.kind for _, one in NAMES for pattern in one.edits}
    assert np.all([one.effective and one.configured for _, one in NAMES])
