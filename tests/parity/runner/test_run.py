"""`parity.run`: what is judged, what is refused, and what stays open."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from records import Scripted, row
from torch import Tensor
from witnesses import changed, small, swap

from jaxllama.checkpoint.samples import tiny
from jaxllama.config import RopeScaling
from jaxllama.errors import InputError, JaxLlamaError
from parity.inputs import DECODE_STEPS, Inputs, decode_chunks
from parity.lockstep.participants import Participant, Role
from parity.report.wording import summary
from parity.result import Result
from parity.runner import forward, run
from parity.runner.plan import MODES, left_out, make_plan
from parity.scenarios import DEFAULT_SCENARIOS, SCENARIOS, scenario
from parity.subjects import select
from parity.subjects.base import Arrays
from parity.subjects.jaxllama.run import JaxRun
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import AXES

PROMPT = (72, 101, 108, 108, 111, 32, 119)


def quick(checkpoint: Any = None, **options: Any) -> Result:
    settings: dict[str, Any] = {"dtypes": "f64", "scenarios": "causal", "prompt": PROMPT}
    return run.run(small() if checkpoint is None else checkpoint, **(settings | options))


class _Tampered(JaxLlama):
    """Changes its taps before handing them over."""

    def tamper(self, taps: Arrays) -> None:
        raise NotImplementedError

    def start(self, inputs: Inputs) -> JaxRun:
        run = super().start(inputs)
        step = run.step

        def tampered(force: Any = None) -> Arrays:
            taps = step(force)
            self.tamper(taps)
            return taps

        run.step = tampered  # type: ignore[method-assign]
        return run


class _Renames(_Tampered):
    def tamper(self, taps: Arrays) -> None:
        if "layers.1.up_proj" in taps:
            taps["layers.1.upper"] = taps.pop("layers.1.up_proj")


class _Misshapes(_Tampered):
    def tamper(self, taps: Arrays) -> None:
        if "layers.1.up_proj" in taps:
            taps["layers.1.up_proj"] = np.swapaxes(taps["layers.1.up_proj"], 1, 2)


class _WrongWitness(TorchReference):
    """Forgets the scale of the scores."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.name = "wrong"

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k) * 1.0001


def test_a_clean_run_is_equal_in_every_mode() -> None:
    seen: list[tuple[int, int]] = []
    result = quick(
        modes="all",
        scenarios="mixed_lengths",
        prompt=None,
        length=8,
        progress=lambda _, done, total: seen.append((done, total)),
    )
    assert (result.verdict, result.exit_code) == ("equal", 0)
    shown = {"free", "isolated", "production", "decode", "grad", "step", "generate", "tokens"}
    assert {row.mode for row in result.rows} == shown
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    assert result.compared == result.expected and not result.unmatched
    assert max(row.error for row in result.rows if row.mode != "grad") < 1e-12


def test_the_default_run_decodes_one_ragged_scenario_and_says_what_it_leaves_out() -> None:
    result = run.run(small(), dtypes="f64", length=17)
    assert result.verdict == "equal" and result.compared == result.expected
    steps = {(r.mode, r.scenario): r.step for r in result.rows}
    decoded = [(mode, name) for mode, name in steps if mode == "decode"]
    assert decoded == [("decode", "left_padded")] and steps[decoded[0]] == 4
    assert {name for mode, name in steps if mode == "free"} == {*DEFAULT_SCENARIOS, "vocabulary"}
    assert summary(result)[1] == (
        "not run: gradients; training step; generation; tokenizer; decode of causal, "
        "long_positions, right_padded; scenarios packed, windowed, mixed_lengths"
    )
    assert "modes=" not in result.command  # said again, it does the same
    (decoded_inputs,) = [i for i in result.inputs if i["scenario"] == "left_padded"]
    assert (decoded_inputs["batch"], decoded_inputs["real_tokens"]) == (3, 17 + 11 + 5)


def test_what_was_asked_for_is_run_and_the_rest_is_said() -> None:
    one_row = quick()
    assert {r.mode for r in one_row.rows} == {"free", "isolated", "production"}
    assert one_row.not_run[:2] == ("decode", "gradients")
    assert quick(modes="free").not_run[:3] == ("isolated", "decode", "gradients")
    plan = make_plan("torch", "f64", "all", "all", ())
    every = [row("embed", mode=m, scenario=s) for m in MODES for s in SCENARIOS]
    assert left_out(plan, every) == ()
    assert left_out(plan, every[1:]) == ()
    assert left_out(plan, [r for r in every if r.scenario != "packed"]) == ("scenario packed",)


def test_a_fault_that_only_a_cache_shows_is_found_by_the_default_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(self: JaxLlama, inputs: Inputs, chunks: Sequence[int]) -> JaxRun:
        late = replace(inputs, positions=np.where(inputs.positions > 12, 0, inputs.positions))
        return JaxRun(self.model, late, chunks)

    monkeypatch.setattr(JaxLlama, "start_decode", forgetful)
    monkeypatch.setattr(run, "find_cause", lambda *_, **__: None)
    result = run.run(small(), dtypes="f64", scenarios="left_padded")
    assert result.first_divergence is not None
    row = result.first_divergence.row
    assert (row.mode, row.step, row.tap) == ("decode", 1, "layers.0.q_rope")


def test_a_clean_run_is_equal_to_within_rounding() -> None:
    result = quick(dtypes="f32,bf16", modes="free")
    assert result.verdict == "equal"
    errors = {lane: [r.error for r in result.rows if r.lane == lane] for lane in ("f32", "bf16")}
    assert 1e-7 < max(errors["f32"]) < 1e-5 and 1e-3 < max(errors["bf16"]) < 0.2


def test_an_override_moves_the_subject_alone() -> None:
    result = quick(overrides=["rms_norm_eps=1e-6"])
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.input_layernorm"
    assert result.checkpoint["config"]["rms_norm_eps"] == 1e-5
    assert result.checkpoint["subject_config"]["rms_norm_eps"] == 1e-6
    assert "overrides=['rms_norm_eps=1e-6']" in result.command
    assert all(row.agrees for row in result.witnesses)


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_weights_are_compared_as_stored_in_whatever_dtype(narrow: str) -> None:
    def widen(weights: dict[str, np.ndarray]) -> None:
        for name in weights:
            weights[name] = weights[name].astype(np.float64) * (1 + 1e-12)

    def mix(weights: dict[str, np.ndarray]) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float32) * 0.9

    for checkpoint in (changed(small(), widen), changed(small(dtype=narrow), mix)):
        assert quick(checkpoint, modes="free").verdict == "equal"
    assert quick(small(dtype=narrow), modes="free").verdict == "equal"


def test_a_contradiction_made_by_an_override_is_blamed_on_it() -> None:
    with pytest.raises(JaxLlamaError, match=r"num_hidden_layers is 7 in .* with overrides"):
        quick(overrides=["num_hidden_layers=7"])


def test_an_unmatched_tap_is_inconclusive() -> None:
    result = quick(subject=_Renames, modes="free")
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert result.unmatched == ("layers.1.up_proj", "layers.1.upper")


def test_an_unmatched_tap_hides_no_divergence() -> None:
    result = quick(subject=_Renames, modes="free", overrides=["rope_theta=1e6"])
    assert (result.verdict, result.exit_code) == ("divergent", 1)
    assert result.unmatched == ("layers.1.up_proj", "layers.1.upper")
    assert result.cause is not None and result.cause.id == "rope-theta"
    line = summary(result)[0]
    assert "first divergence layers.0.q_rope (meaning)" in line and "2 taps unmatched" in line


def test_a_wrong_shape_is_divergent_not_an_error() -> None:
    result = quick(subject=_Misshapes)
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.1.up_proj"
    assert "shape" in result.first_divergence.row.problems[0]


def test_a_wrong_witness_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    participants_for = forward.participants_for

    def with_another(checkpoint: Any, *more: Any) -> dict[str, list[Participant]]:
        wrong = Participant(
            _WrongWitness(checkpoint, dtype="f64"), frozenset({Role.WITNESS}), ("free",)
        )
        return {
            lane: [*present, wrong] for lane, present in participants_for(checkpoint, *more).items()
        }

    monkeypatch.setattr(forward, "participants_for", with_another)
    result = quick(modes="free")
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert [row.witness for row in result.disagreeing] == ["wrong"]


def test_no_tap_at_all_is_an_error() -> None:
    class Mute(Scripted):
        def __init__(self, *_: object) -> None:
            super().__init__("mute", absent=frozenset(AXES))

    with pytest.raises(InputError, match="no tap was compared"):
        quick(subject=Mute, modes="free")


@pytest.mark.ill_typed
@pytest.mark.parametrize("prompt", ["", [], [5, -1, 3], [5, 264], np.zeros((2, 3), int), [0.5]])
def test_prompts_that_cannot_be_run(prompt: str | Sequence[int]) -> None:
    with pytest.raises(InputError):
        quick(prompt=prompt)


def test_an_id_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(InputError, match=r"token id 264 at index 2.*vocabulary of 264"):
        quick(prompt=[1, 2, 264])


def test_without_a_tokenizer_the_text_is_taken_as_bytes_and_said_so() -> None:
    mute = replace(small(), tokenizer_loader=None)
    result = quick(mute, prompt=None, length=len(PROMPT))
    assert result.verdict == "equal"
    assert any("has no tokenizer" in note for note in result.notes)
    with pytest.raises(InputError, match="has no tokenizer"):
        quick(mute, prompt="text")


def test_a_witness_that_cannot_express_the_model_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select, "load_model", lambda *_, **__: pytest.fail("loaded first"))
    linear = RopeScaling(kind="linear", factor=2.0)
    with pytest.raises(InputError, match="rope_scaling"):
        quick(small(scaling=linear), reference="meta")


def test_a_witness_that_is_not_installed_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select, "load_model", lambda *_, **__: pytest.fail("loaded first"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "parity.subjects.hf.subject", raising=False)
    with pytest.raises(InputError, match=r"transformers, which is not installed.*pip install"):
        quick(reference="hf")


def test_a_reference_that_nothing_makes_or_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "WITNESSES", (*select.WITNESSES, "ghost"))
    with pytest.raises(InputError, match="reference='ghost': takes part in nothing"):
        quick(reference="ghost")
    with pytest.raises(InputError, match="witness ghost: nothing makes one"):
        quick(subject="ghost")


def test_what_takes_part_at_several_dtypes_is_one_and_runs_once() -> None:
    checkpoint = small()
    subjects: Any = {lane: TorchReference(checkpoint, dtype=lane) for lane in ("f64", "f32")}
    found = forward.participants_for(
        checkpoint, TorchReference(checkpoint), subjects, (), ("free",)
    )
    noise = {lane: [one.subject for one in present[1:]] for lane, present in found.items()}
    shared = {id(one) for one in noise["f64"]} & {id(one) for one in noise["f32"]}
    assert len(shared) == 2  # float32's own noise, and what float64's is scaled from


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("checkpoint", "options", "said"),
    [
        (None, {}, "checkpoint None: expected a path"),
        (3, {}, "checkpoint 3: expected a path"),
        ("", {}, r"checkpoint \(nothing\): give a directory"),
        ("tiny", {"reference": None}, "reference='None': expected one or more of torch"),
        ("tiny", {"dtypes": 3}, "dtypes='3': expected one or more of f64"),
        ("tiny", {"length": "a"}, "length 'a': expected a whole number"),
        ("tiny", {"subject": lambda: 1}, "which it does not take .*has to return a subject"),
        ("tiny", {"subject": lambda model, dtype: 1}, "it gave int; it has to return a subject"),
    ],
)
def test_what_is_of_another_type_is_said_in_one_line(
    checkpoint: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        run.run(checkpoint, **({"scenarios": "causal", "length": 5, "modes": "free"} | options))
    assert "\n" not in str(caught.value)


def test_the_reference_is_named_as_what_it_is() -> None:
    rows = quick().witnesses
    assert [(row.witness, row.is_gold) for row in rows] == [("torch", True)]


def test_what_is_past_the_context_is_refused() -> None:
    short = small(max_position_embeddings=29)
    with pytest.raises(InputError, match=r"^length: 30 tokens, .* a context of 29 .*length=29"):
        quick(short, length=30)
    with pytest.raises(InputError, match=r"^mode generate, prompts of 9: 30 tokens, .*leave out"):
        quick(short, modes="generate")
    assert quick(short, modes="free").verdict == "equal"


def test_nan_weights_are_refused() -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan

    with pytest.raises(JaxLlamaError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        quick(changed(small(), spoil))


def test_swapped_weights_in_the_checkpoint_reach_both_sides() -> None:
    """Implementations are compared: weights that are wrong for both make no difference."""
    names = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight")
    assert quick(changed(small(), swap(*names))).verdict == "equal"


def test_progress_counts_to_its_total() -> None:
    seen: list[tuple[str, int, int]] = []
    quick(progress=lambda *heard: seen.append(heard), modes=("free", "decode"))
    total = seen[0][2]
    assert [done for _, done, _ in seen] == list(range(1, total + 1))
    assert "causal" in seen[0][0] and seen[-1][0].endswith("decode")


@pytest.mark.parametrize("length", [1, 2, 3, 9, 61])
def test_decoding_feeds_every_column_once(length: int) -> None:
    inputs = scenario("causal", lambda text: list(text.encode()), tiny().config, length=length)
    chunks = decode_chunks(inputs)
    assert sum(chunks) == length and min(chunks) >= 1
    assert length < 9 or chunks[-DECODE_STEPS:] == [1] * DECODE_STEPS


def test_torch_sees_no_gradient_mode_left_on() -> None:
    before = torch.is_grad_enabled()
    quick(modes="free")
    assert torch.is_grad_enabled() is before


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_search_without_an_end_or_a_beginning_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match=r"seconds=.*: expected a number above 0"):
        run.run(small(), seconds=seconds)


def test_the_time_of_a_search_is_said_again_and_what_it_left_out() -> None:
    broken = quick(overrides={"rope_theta": 1e6}, seconds=1e-6)
    assert "seconds=1e-06" in broken.command
    assert broken.cause is not None and not broken.cause.confirmed
    assert any("not tried were" in line for line in broken.cause.evidence)
    assert "seconds=" not in quick().command
