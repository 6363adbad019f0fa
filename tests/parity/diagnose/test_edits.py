"""What no cause lists, explained by edits of the reference's programs.

Subjects are the reference with a method overridden: faults in code, apart from the edits that are
to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from witnesses import small

from parity.diagnose.compare_recording import compare_recording, evidence_elsewhere
from parity.diagnose.edits.edit import EVERYWHERE, Edit, Explanation, Scope, in_words
from parity.diagnose.edits.kinds import apply_edits, kinds, proposals, visible
from parity.diagnose.edits.numbers import solve_numbers
from parity.diagnose.edits.search import explanations
from parity.diagnose.edits.trial import Known, OperatorTrial, operator_trial
from parity.diagnose.elsewhere import Elsewhere
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.mutations import Mutation
from parity.diagnose.probe_inputs import probe_inputs
from parity.diagnose.recording import Recording, first_columns, record
from parity.diagnose.search import diagnose
from parity.inputs import Inputs, decode_chunks, visible_keys
from parity.scenarios import scenario
from parity.subjects.base import Subject
from parity.subjects.torch_reference.operations import ReadBack
from parity.subjects.torch_reference.program import PROGRAM, operand_names
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = small()
LAYERS = CHECKPOINT.config.num_hidden_layers
ALL = tuple(kinds())
ENOUGH = 1e-11


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def inputs_of(name: str) -> Inputs:
    return scenario(name, lambda text: list(text.encode()), CHECKPOINT.config, length=13)


def recorded(subject: Subject, name: str = "left_padded", *, cached: bool = False) -> Recording:
    inputs = inputs_of(name)
    return record(subject, inputs, decode_chunks(inputs) if cached else None, LAYERS)


def trial_of(subject: Subject, name: str = "left_padded", *, cached: bool = False) -> OperatorTrial:
    recording = recorded(subject, name, cached=cached)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), recording.inputs)
    assert found.evidence is not None
    trial = operator_trial(found.evidence)
    assert trial is not None
    return trial


class Gelu(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.gelu(gate) * up


class Exchanged(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return super().activation(up, gate)


class Scaled(TorchReference):
    def scale(self) -> float:
        return 0.2


class Paired(TorchReference):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b, cos, sin = x[..., 0::2], x[..., 1::2], cos[:, :, None], sin[:, :, None]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class Centred(TorchReference):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        return super().rms_norm(x - x.mean(-1, keepdim=True), name)


class OverTokens(TorchReference):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        rms = (x.square().mean(1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return x / rms * self.weight(f"{name}.weight").to(x.dtype)


class Warm(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        return super().probs(scores * 1.3, mask)


class NextHead(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k).roll(1, 1)


class Twice(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return 2 * y if name.endswith("v_proj") else y


class OneLayerRounded(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return y.bfloat16().to(y.dtype) if name.endswith("layers.1.self_attn.o_proj") else y


class OneHead(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k)
        scores[:, 2] *= 3
        return scores


class SeesAll(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        return super().probs(scores, mask.any(1, keepdim=True) & mask.any(2, keepdim=True))


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (Gelu, "activated is gelu in place of silu"),
        (Exchanged, "gate_proj and up_proj are exchanged"),
        (Scaled, "scale is 0.2 in place of 0.25"),
        (Paired, "features 2i and 2i + 1 are a pair in place of i and i + H/2"),
        (Centred, "input passes through less its mean"),
        (OverTokens, "mean is mean over axis -2 in place of mean over axis -1"),
        (Warm, "attn_scores is multiplied by 1.3"),
        (NextHead, "is that of the index before along axis 1, around the end"),
        (Twice, "weight is multiplied by 2"),
        (OneLayerRounded, "product is rounded through bfloat16"),
        (OneHead, "scale is 0.75 in place of 0.25 in head 2 alone"),
        (SeesAll, "is left out"),
    ],
)
def test_one_edit_explains_an_operator(subject: Callable[..., Subject], said: str) -> None:
    trial = trial_of(subject(CHECKPOINT))
    found = explanations(trial, ALL, ENOUGH)
    assert any(said in one.said for one in found), [one.said for one in found]
    for one in found:
        assert one.left <= ENOUGH and one.left == trial.left(one.edits, one.scope)


def test_a_number_in_a_scope_keeps_its_words() -> None:
    assert in_words([7, 1, 2, 3]) == "1 to 3, 7"
    scope = Scope((("N", frozenset({2, 3})),))
    assert scope.said == "in head 2 to 3 alone"
    cells = scope.cells("attn_scores", torch.zeros(2, 6, 4, 4))
    assert cells is not None and cells[0, :, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert EVERYWHERE.said == "" and EVERYWHERE.cells("attn_scores", torch.zeros(1)) is None


class ShiftedAndRounded(TorchReference):
    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(a.bfloat16().to(a.dtype) for a in super().angles(freq, positions + 1))  # type: ignore[return-value]


class OtherEpsAndDoubled(TorchReference):
    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        rms = (x.square().mean(-1, keepdim=True) + 1e-4).sqrt()
        return 2 * (x / rms) * self.weight(f"{name}.weight").to(x.dtype)


class GeluAndRounded(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.gelu(gate) * up.half().to(up.dtype)


class ScaledAndTurned(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q.roll(1, 2), k) * 3


class SignAndRounded(TorchReference):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(x.half().to(x.dtype), cos, -sin)


PAIRS = {
    ShiftedAndRounded: ("1 is added to positions", "cos and sin are rounded through bfloat16"),
    OtherEpsAndDoubled: ("multiplied by", "eps is"),
    GeluAndRounded: ("is gelu in place of silu", "up_proj is rounded through float16"),
    ScaledAndTurned: ("index before along axis", "scale is 0.75 in place of 0.25"),
    SignAndRounded: ("q_proj is rounded through float16", ""),
}


@pytest.mark.parametrize("subject", PAIRS, ids=lambda s: s.__name__)
def test_two_edits_of_one_operator_are_both_named(subject: Callable[..., Any]) -> None:
    trial = trial_of(subject(CHECKPOINT))
    found = explanations(trial, ALL, ENOUGH)
    assert found, "unexplained"
    assert any(all(said in one.said for said in PAIRS[subject]) for one in found), [
        one.said for one in found
    ]
    for one in found:
        assert len(one.edits) == 2
        for edit in one.edits:  # without any one of them it is none
            rest = [other for other in one.edits if other is not edit]
            assert trial.left(rest, one.scope) > ENOUGH


def test_pairs_are_confirmed_in_the_whole_model() -> None:
    found = diagnose(recorded(OtherEpsAndDoubled(CHECKPOINT)), CHECKPOINT)
    assert found is not None and found.confirmed
    # What has a name goes by it, what has none is said exactly.
    assert [found.id, *(other.id for other in found.others)] == ["norm-eps", "operator-edited"]
    # Half as large a value with a quarter of eps comes to the same.
    assert found.effective in ("eps 0.0001", "eps 2.5e-05") and found.configured == "1e-05"
    assert "is multiplied by" in found.others[0].summary


def test_a_rounding_in_one_layer_is_said_to_be_there() -> None:
    found = diagnose(recorded(OneLayerRounded(CHECKPOINT)), CHECKPOINT)
    assert found is not None
    assert (found.id, found.confirmed) == ("value-rounded", True)
    assert "(o_proj: product is rounded through bfloat16 in layer 1)" in found.summary


def test_all_layers_are_said_where_an_edit_holds() -> None:
    class TwoLayers(TorchReference):
        def linear(self, x: Tensor, name: str) -> Tensor:
            y = super().linear(x, name)
            return y if "layers.0." in name or "o_proj" not in name else y.bfloat16().to(y.dtype)

    found = diagnose(recorded(TwoLayers(CHECKPOINT)), CHECKPOINT)
    assert found is not None
    assert (found.id, found.confirmed) == ("value-rounded", True)
    assert "(o_proj: product is rounded through bfloat16 in layers 1 to 2)" in found.summary
    assert [e.changed[-7:] for e in found.experiments] == ["layer 1", "layer 2"]


class Unexplained(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return super().activation(gate, up) + 0.01 * gate.sin()


def test_what_no_edit_makes_stays_unexplained() -> None:
    assert explanations(trial_of(Unexplained(CHECKPOINT)), ALL, ENOUGH) == []


class SlotsFromOne(TorchReference):
    """A cache whose tokens are written one slot too far."""

    def start_decode(self, inputs: Any, chunks: Sequence[int]) -> Any:
        change = Edit("keys", "order", "slot", ("left out", "filled"), None, "slot is left out")
        changes = [Mutation(tap, edits=(replace(change, tap=tap),)) for tap in ("keys", "values")]
        return MutatedReference(CHECKPOINT, changes).start_decode(inputs, chunks)


def test_slots_of_a_cache_are_explained() -> None:
    found = diagnose(recorded(SlotsFromOne(CHECKPOINT), cached=True), CHECKPOINT)
    assert found is not None
    assert found.confirmed
    assert "slot is left out" in found.summary


class SlotAndKeptExchanged(TorchReference):
    """A cache that chooses slots with the arguments of the choice in another order."""

    def start_decode(self, inputs: Any, chunks: Sequence[int]) -> Any:
        change = Edit("", "operand", "at", ("exchanged in it", "kept", "slot"))
        taps = ("keys", "values", "mask")
        changes = [Mutation(tap, edits=(replace(change, tap=tap),)) for tap in taps]
        return MutatedReference(CHECKPOINT, changes).start_decode(inputs, chunks)


def test_arguments_in_another_order_are_explained() -> None:
    found = diagnose(recorded(SlotAndKeptExchanged(CHECKPOINT), cached=True), CHECKPOINT)
    assert found is not None and found.confirmed
    # These rows do not tell it from a slot that is 1 for what is kept.
    assert any("kept and slot are exchanged in at" in line for line in found.evidence)


class HandsOnItsNegative(TorchReference):
    def layer(self, i: int, x: Tensor, around: Any, tap: Any) -> Tensor:
        return -super().layer(i, x, around, tap)


def test_what_layers_hand_on_is_an_operator_too() -> None:
    found = diagnose(recorded(HandsOnItsNegative(CHECKPOINT)), CHECKPOINT)
    assert found is not None and found.confirmed
    assert "input: handed is negative in place of identity in layers 1 to 2" in found.summary
    assert "norm is multiplied by -1" in found.summary


class OtherDocuments(TorchReference):
    """Where rows have several documents, queries see all but their own."""

    def start(self, inputs: Any) -> Any:
        if inputs.segments is not None:
            other = inputs.segments[:, :, None] != inputs.segments[:, None, :]
            real = inputs.valid[:, :, None] & inputs.valid[:, None, :]
            past = inputs.positions[:, :, None] >= inputs.positions[:, None, :]
            inputs = replace(inputs, mask=past & other & real)
        return super().start(inputs)


def test_a_rule_of_documents_holds_where_rows_have_some() -> None:
    subject = OtherDocuments(CHECKPOINT)
    elsewhere = Elsewhere([recorded(subject, "left_padded")])
    found = diagnose(recorded(subject, "packed"), CHECKPOINT, elsewhere=elsewhere)
    assert found is not None and found.confirmed
    assert "mask: alike is != in place of ==" in found.summary


class SharpInLaterCalls(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k)
        return 3 * scores if k.shape[1] > q.shape[1] else scores


class SharpInSingleColumns(TorchReference):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k)
        return 3 * scores if q.shape[1] == 1 else scores


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (SharpInLaterCalls, "in calls after the first alone"),
        (SharpInSingleColumns, "in calls of one column alone"),
    ],
)
def test_an_edit_may_hold_in_some_calls_alone(subject: Callable[..., Subject], said: str) -> None:
    found = diagnose(recorded(subject(CHECKPOINT), cached=True), CHECKPOINT)
    assert found is not None and found.confirmed
    assert found.summary.count("alone") == 1 and said in found.summary


def test_scopes_of_calls_are_those_that_they_say() -> None:
    assert Scope().in_call(0, 9) and Scope().in_call(2, 1)
    assert [Scope(calls="later").in_call(n, 1) for n in range(3)] == [False, True, True]
    assert [Scope(calls="single").in_call(1, n) for n in (2, 1)] == [False, True]
    rows = Scope((("B", frozenset({1})),), calls="later")
    assert rows.said == "in row 1 alone in calls after the first alone"


def test_what_cannot_be_told_apart_is_said() -> None:
    found = diagnose(recorded(OtherEpsAndDoubled(CHECKPOINT)), CHECKPOINT)
    assert found is not None and found.confirmed
    (line,) = (line for line in found.evidence if line.startswith("as good in what"))
    assert " tried at layers.0.input_layernorm: " in line


def test_an_explanation_that_fails_in_another_scenario_is_not_confirmed() -> None:
    """One document shows no difference between everything and everything of one's own document."""

    class OwnDocument(TorchReference):
        def start(self, inputs: Any) -> Any:
            segments = np.zeros_like(inputs.tokens) if inputs.segments is None else inputs.segments
            own = segments[:, :, None] == segments[:, None, :]
            real = inputs.valid[:, :, None] & inputs.valid[:, None, :]
            return super().start(replace(inputs, mask=own & real))

    subject = OwnDocument(CHECKPOINT)
    recording, other = recorded(subject), recorded(subject, "packed")
    alone = diagnose(recording, CHECKPOINT)
    assert alone is not None and (alone.id, alone.confirmed) == ("mask-not-causal", True)
    found = diagnose(recording, CHECKPOINT, elsewhere=Elsewhere([other]))
    assert found is not None and found.confirmed
    assert "mask-not-causal" not in (found.id, *(one.id for one in found.others))
    inputs = inputs_of("packed")
    wrong = found.wrong_inputs(inputs, None)
    assert compare_recording(other, found.wrong_reference, wrong).first is None


def test_evidence_of_other_scenarios_is_of_the_same_tap() -> None:
    subject = Gelu(CHECKPOINT)
    recording = recorded(subject)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), recording.inputs)
    assert found.evidence is not None
    cached = recorded(subject, "packed", cached=True)
    beside = list(evidence_elsewhere(found.evidence, cached, cached.inputs))
    assert [e.columns.stop for e in beside] == list(np.cumsum(decode_chunks(cached.inputs)))
    for one in beside:
        trial = operator_trial(one)
        assert trial is not None and trial.tap == "mlp_act"
        gelu = Explanation((Edit("mlp_act", "operation", "activated"),), EVERYWHERE, 0.0)
        assert trial.left(()) > 1e-3
        assert gelu.cost == 1.0


def test_every_proposal_is_an_edit_that_can_be_made_or_refused() -> None:
    """All kinds, on every operator: a rewritten program differs from the one before."""
    subject = MutatedReference(CHECKPOINT, [Mutation("embed", value=lambda site: site.value * 2)])
    recording = recorded(subject)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), recording.inputs)
    assert found.evidence is not None
    tried = set()
    for layer, tap in [(None, "embed"), *((0, tap) for tap in PROGRAM if tap not in _APART)]:
        name = tap if layer is None else f"layers.{layer}.{tap}"
        (evidence,) = evidence_elsewhere(
            replace(found.evidence, tap=name), recording, recording.inputs
        )
        trial = operator_trial(evidence)
        assert trial is not None, tap
        values = trial.values(trial.program)
        for edit in proposals(ALL, trial, trial.program, values):
            assert (edit.tap, edit.kind in ALL, edit.cost > 0) == (tap, True, True)
            assert edit.said or "{}" in edit.template
            made = replace(edit, value=3.0) if edit.template else edit
            assert apply_edits(trial.program, [made]) != trial.program, edit
            tried.add(edit.kind)
    assert tried == set(ALL) - {visible.ID}  # of a mask alone, see test_visibility.py


_APART = ("embed", "norm", "logits", "keys", "values")


def test_an_edit_that_would_take_much_memory_is_refused() -> None:
    """A head dim of theta makes half a million pairs; a cache of a billion slots is not made."""
    trial = trial_of(Paired(CHECKPOINT))
    known = Known(trial.program, trial.values(trial.program))
    huge = Edit("q_rope", "operand", "pair", ("0", "theta"))
    with pytest.raises(ValueError, match=r"pair: \(250000,\), larger than any operand"):
        trial.values(apply_edits(trial.program, [huge]), known)
    assert trial.left((huge,), known=known) == 1e300
    made, slots, row = torch.ones(1, 3, 1, 2), torch.arange(3)[None], torch.zeros(1, 1)
    call, capacity = torch.zeros(3, dtype=torch.long), torch.tensor(10**12)
    found = ReadBack()(MutatedReference(CHECKPOINT), made, slots, slots, call, capacity, row)
    assert torch.equal(found, made)


def test_what_was_read_off_one_scenario_is_not_confirmed_of_others() -> None:
    inputs = inputs_of("left_padded")
    odd = np.array(inputs.mask)
    odd[:, 9, 4] ^= True  # in no rule

    class Odd(TorchReference):
        def start(self, given: Any) -> Any:
            return super().start(
                replace(given, mask=odd if given.name == inputs.name else given.mask)
            )

    subject = Odd(CHECKPOINT)
    recording, other = recorded(subject), recorded(subject, "causal")
    alone = diagnose(recording, CHECKPOINT)
    assert alone is not None and alone.confirmed
    found = diagnose(recording, CHECKPOINT, elsewhere=Elsewhere([other]))
    assert found is not None and not found.confirmed
    assert "causal" in found.evidence[-1] and "in every tap; " in found.evidence[-1]


def test_operands_that_programs_read_are_given() -> None:
    for tap, program in PROGRAM.items():
        assert operand_names(program), tap


def test_numbers_are_solved_for() -> None:
    x = torch.linspace(1, 2, 7, dtype=torch.float64)

    def residual(numbers: Sequence[float]) -> Tensor:
        a, b = numbers
        return a * x + torch.exp(b * x) - (3 * x + torch.exp(0.5 * x))

    assert solve_numbers(residual, [(1.0,), (0.0, 1.0)], 1e-12) == [3.0, 0.5]
    assert solve_numbers(lambda _: None, [(1.0,)], 1e-12) is None
    none = solve_numbers(lambda n: x * 0 + 1, [(1.0,)], 1e-12)
    assert none is not None and none == [1.0]


def test_probe_inputs_are_scenarios() -> None:
    inputs = inputs_of("long_positions")
    packed, windowed = probe_inputs(inputs)
    for one in (packed, windowed):
        assert one.tokens.shape == inputs.tokens.shape
        assert not one.valid.all() and one.valid.any(1).all()
        made = visible_keys(one.valid, one.segments, one.window)
        np.testing.assert_array_equal(one.mask, made)
        assert (one.positions[one.valid] == 0).sum() >= len(one.tokens)
    assert packed.segments is not None and len(np.unique(packed.segments)) == 3
    assert windowed.window == 4
    assert probe_inputs(first_columns(inputs, 7)) == []
