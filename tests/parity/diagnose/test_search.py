"""From a wrong model's taps to the name of what is wrong with it.

Subjects are the PyTorch reference with one method overridden, or the JAX model with another
configuration: faults in code apart from the causes that are to be found.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from witnesses import changed, small, swap

import parity
from jaxllama.checkpoint import Checkpoint
from parity.diagnose.cause import catalogue
from parity.diagnose.compare_recording import compare_recording
from parity.diagnose.elsewhere import Elsewhere
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import record, truncated_to_fit
from parity.diagnose.search import diagnose
from parity.diagnose.trials import best_trial, ranked_hypotheses
from parity.runner import run
from parity.scenarios import scenario
from parity.subjects.base import Subject
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = small()
LAYERS = CHECKPOINT.config.num_hidden_layers


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cause(subject: Subject, checkpoint: Checkpoint = CHECKPOINT, name: str = "causal") -> Any:
    inputs = scenario(name, lambda text: list(text.encode()), checkpoint.config, length=13)
    return diagnose(record(subject, inputs, None, LAYERS), checkpoint)


class Backwards(TorchReference):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(x, cos, -sin)


class Tiled(TorchReference):
    def kv_head_of_query(self) -> Tensor:
        return torch.arange(self.config.num_attention_heads) % self.config.num_key_value_heads


class Unscaled(TorchReference):
    def scale(self) -> float:
        return 1.0


class Gelu(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.gelu(gate) * up


class Dropped(TorchReference):
    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.softmax(-1)


class Uncatalogued(TorchReference):
    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return super().activation(gate, up) + 0.01 * gate.sin()


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (Backwards, "rope-sign"),
        (Tiled, "kv-head-map"),
        (Unscaled, "score-scale"),
        (Gelu, "activation"),
        (Dropped, "mask-dropped"),
    ],
)
def test_a_wrong_operator_is_named_and_confirmed(subject: Any, expected: str) -> None:
    found = cause(subject(CHECKPOINT))
    assert (found.id, found.confirmed) == (expected, True)
    assert not found.suspects and not found.others
    assert found.evidence[-1].startswith("so changed, the reference agrees")
    assert "->" in found.evidence[0]


@pytest.mark.parametrize(
    ("fields", "expected", "effective"),
    [
        ({"rope_theta": 1e6}, "rope-theta", "theta 1e+06"),
        ({"rope_scaling": None}, "rope-scaling", "scaling none"),
        ({"rms_norm_eps": 1e-6}, "norm-eps", "eps 1e-06"),
    ],
)
def test_a_wrong_configuration_is_solved(
    fields: dict[str, Any], expected: str, effective: str
) -> None:
    config = CHECKPOINT.config.replace(**fields)
    found = cause(TorchReference(CHECKPOINT, config=config))
    assert (found.id, found.confirmed) == (expected, True)
    assert found.effective == effective


def test_theta_is_solved_without_the_table() -> None:
    config = CHECKPOINT.config.replace(rope_theta=1e4, rope_scaling=None)
    subject = TorchReference(CHECKPOINT, config=config)
    inputs = scenario("causal", lambda text: list(text.encode()), config, length=13)
    recording = record(subject, inputs, None, LAYERS)
    del recording.stages[0]["rope.inv_freq"]
    subject.absent = frozenset({"rope.inv_freq"})
    found = diagnose(recording, CHECKPOINT)
    assert found is not None
    assert found.id.startswith("rope-")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p: p + 3, "positions shifted by +3"),
        (lambda p: p // 2, "positions halved"),
        (lambda p: np.minimum(p, 5), "positions held at 5"),
    ],
)
@pytest.mark.parametrize("chunks", [None, [8, 4, 1]])
def test_positions_are_solved_of_rotations_alone(wrong: Any, said: str, chunks: Any) -> None:
    inputs = scenario("causal", lambda text: list(text.encode()), CHECKPOINT.config, length=13)
    subject = TorchReference(CHECKPOINT)
    recording = record(subject, replace(inputs, positions=wrong(inputs.positions)), chunks, LAYERS)
    recording = replace(recording, inputs=inputs)
    for stage in recording.stages:
        stage.pop("positions", None)
    subject.absent = frozenset({"positions"})
    found = diagnose(recording, CHECKPOINT)
    assert found is not None
    assert (found.id, found.confirmed) == ("position-offset", True)
    assert said in found.summary and ", configured " in found.summary


W = "model.layers.1.{}.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (swap(W.format("mlp.gate_proj"), W.format("mlp.up_proj")), "weight-swapped"),
        (swap(W.format("input_layernorm"), "model.layers.0.input_layernorm.weight"), None),
        (
            lambda w: w.update({n: w[n].astype(np.float16).astype(np.float32) for n in w}),
            "weight-rounded",
        ),
        (lambda w: w[W.format("self_attn.o_proj")].fill(0), "weight-zeros"),
    ],
)
def test_a_wrong_weight_is_named(change: Any, expected: str | None) -> None:
    found = cause(TorchReference(changed(CHECKPOINT, change)))
    assert (found.id, found.confirmed) == (expected or "weight-neighbour", True)


def test_two_faults_are_named_one_after_the_other() -> None:
    names = (W.format("mlp.gate_proj"), W.format("mlp.up_proj"))
    found = cause(Backwards(changed(CHECKPOINT, swap(*names))))
    assert found.confirmed
    assert [found.id, *(other.id for other in found.others)] == ["rope-sign", "weight-swapped"]


def test_what_is_in_no_catalogue_is_called_unexplained() -> None:
    found = cause(Uncatalogued(CHECKPOINT))
    assert (found.id, found.confirmed) == ("", False)
    assert found.evidence[-1].startswith("unexplained: layers.0.mlp_act")


def test_a_known_fault_before_an_unknown_one_is_not_called_confirmed() -> None:
    class Both(Backwards, Uncatalogued):
        pass

    found = cause(Both(CHECKPOINT))
    assert (found.id, found.confirmed) == ("rope-sign", False)
    assert found.evidence[-1].startswith("unexplained: layers.0.mlp_act")


@pytest.mark.parametrize("name", ["causal", "left_padded", "packed"])
def test_an_equal_subject_has_no_cause(name: str) -> None:
    assert cause(TorchReference(CHECKPOINT, variant="reordered"), name=name) is None


def test_a_mask_is_told_from_its_cells() -> None:
    inputs = scenario("left_padded", lambda text: list(text.encode()), CHECKPOINT.config, length=13)
    lower = np.tril(np.ones_like(inputs.mask))
    seen = TorchReference(CHECKPOINT).start(replace(inputs, mask=lower))

    class Wrong(TorchReference):
        def start(self, _: Any) -> Any:
            return seen

    found = diagnose(record(Wrong(CHECKPOINT), inputs, None, LAYERS), CHECKPOINT)
    assert found is not None
    assert (found.id, found.confirmed) == ("mask-padding-ignored", True)


def test_long_runs_are_cut_to_fit() -> None:
    inputs = scenario("causal", lambda text: list(text.encode()), CHECKPOINT.config)
    assert truncated_to_fit(inputs, CHECKPOINT.config, "f64", LAYERS) is inputs
    cut = truncated_to_fit(inputs, CHECKPOINT.config, "f64", 4000)
    assert cut.tokens.shape[1] < inputs.tokens.shape[1]
    assert cut.mask.shape[1:] == (cut.tokens.shape[1],) * 2


def test_evidence_is_gathered_where_they_part() -> None:
    inputs = scenario("causal", lambda text: list(text.encode()), CHECKPOINT.config, length=13)
    recording = record(Gelu(CHECKPOINT), inputs, None, LAYERS)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), inputs)
    assert found.first is not None and found.evidence is not None
    assert found.evidence.short == "mlp_act" and found.evidence.layer == 0
    assert found.rows[-1].tap == "layers.0.output"


def test_a_run_says_why_it_diverged() -> None:
    found = run.run(
        CHECKPOINT, dtypes="f64", scenarios="causal", length=13, overrides=["rope_theta=1e6"]
    )
    assert found.cause is not None
    assert (found.cause.id, found.cause.confirmed) == ("rope-theta", True)
    assert "effective theta 1e+06, configured 500000" in found.cause.summary
    clean = run.run(CHECKPOINT, dtypes="f64", scenarios="causal", length=13)
    assert clean.cause is None


def test_a_cache_of_wrong_keys_is_no_crash() -> None:
    inputs = scenario("causal", lambda text: list(text.encode()), CHECKPOINT.config, length=13)
    recording = record(TorchReference(CHECKPOINT), inputs, [8, 4, 1], LAYERS)
    assert diagnose(recording, CHECKPOINT) is None
    recording.stages[1]["cache.0.k"] = -recording.stages[1]["cache.0.k"]
    found = diagnose(recording, CHECKPOINT, seconds=5.0)
    assert found is not None
    # What no model does is left open, or said as it was done.
    assert not found.confirmed or "keys: held is multiplied by -1" in found.summary


class RoughlySummed(TorchReference):
    """Products whose blocks of terms are rounded to a precision between float32 and bfloat16."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        if x.dtype != torch.float32 or not name.endswith("mlp.up_proj"):
            return super().linear(x, name)
        weight, kept = self.weight(f"{name}.weight").float(), x.new_zeros(())
        for start in range(0, x.shape[-1], 16):
            part = slice(start, start + 16)
            kept = _rounded(kept + x[..., part] @ weight[:, part].T)
        return kept


def _rounded(x: Tensor) -> Tensor:
    """Keep 16 bits of 24."""
    return ((x.view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def test_where_float64_is_equal_no_other_meaning_is_suspected() -> None:
    result = parity.run(
        CHECKPOINT,
        dtypes="f64,f32",
        scenarios="causal",
        length=23,
        subject=lambda model, dtype: RoughlySummed(CHECKPOINT, dtype=dtype),
    )
    assert (result.verdict, result.difference) == ("divergent", "rounding")
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.up_proj"
    assert result.cause is not None
    suspects = {suspect.id for suspect in result.cause.suspects}
    assert suspects <= {file.cause.id for file in catalogue().values() if file.cause.rounding}
    assert not suspects & {"weight-permuted", "weight-element"}


def test_what_a_trial_has_refuted_is_no_suspect() -> None:
    subject = Uncatalogued(CHECKPOINT)
    inputs = scenario("causal", lambda text: list(text.encode()), CHECKPOINT.config, length=13)
    recording = record(subject, inputs, None, LAYERS)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), inputs)
    assert found.evidence is not None
    ranked = ranked_hypotheses(found.evidence)
    best, _, refuted = best_trial(recording, found, ranked, time.monotonic() + 60, Elsewhere())
    assert best is None
    said = diagnose(recording, CHECKPOINT)
    assert said is not None
    assert not {h.said for h in refuted} & {s.summary for s in said.suspects}


def test_a_path_of_one_dtype_s_own_keeps_its_cause() -> None:
    """In 16 bits a wrong theta is few limits off; the experiment tells what figures do not."""
    wrong = CHECKPOINT.config.replace(rope_theta=1e6)
    result = parity.run(
        CHECKPOINT,
        dtypes="f64,bf16",
        scenarios="causal",
        length=61,
        modes="free",
        subject=lambda model, dtype: TorchReference(
            CHECKPOINT, dtype=dtype, config=wrong if dtype == "bf16" else CHECKPOINT.config
        ),
    )
    assert (result.verdict, result.difference) == ("divergent", "computation")
    assert result.cause is not None
    assert (result.cause.id, result.cause.confirmed) == ("rope-theta", True)


class ShownWrong(TorchReference):
    """Shows another table of frequencies than it rotates by."""

    def start(self, inputs: Any) -> Any:
        run = super().start(inputs)
        step = run.step

        def shown(*given: Any) -> Any:
            taps = step(*given)
            return taps | {n: 2 * taps[n] for n in ("rope.inv_freq",) if n in taps}

        run.step = shown  # type: ignore[method-assign]
        return run


@pytest.mark.parametrize("mode", ["free", "isolated"])
def test_a_wrong_table_has_its_cause_where_operators_are_handed_the_right_one(mode: str) -> None:
    asked = {"dtypes": "f64", "scenarios": "causal", "length": 13, "modes": mode}
    wrong = TorchReference(CHECKPOINT, config=CHECKPOINT.config.replace(rope_theta=1e6))
    result = parity.run(CHECKPOINT, subject=lambda model, dtype: wrong, **asked)
    assert result.cause is not None
    assert (result.cause.id, result.cause.confirmed) == ("rope-theta", True)
    shown = ShownWrong(CHECKPOINT)
    result = parity.run(CHECKPOINT, subject=lambda model, dtype: shown, **asked)
    assert result.verdict == "divergent"
    assert result.cause is not None
    assert result.cause.summary == (
        "unexplained: rope.inv_freq differs, and nothing that is computed by it"
    )


class NarrowTables(TorchReference):
    """Rotates by tables that were made in float32, of angles that were, too."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        noise = torch.sin(1e5 * cos) * 1e-7
        return super().rotate(x, cos + noise, sin - noise)


def test_an_error_of_float32_s_size_in_float64_is_said_to_be_one() -> None:
    said = cause(NarrowTables(CHECKPOINT))
    assert said.id == "" and "float32 inside a float64 model" in said.evidence[-1]
    assert "float32 inside" not in str(cause(Uncatalogued(CHECKPOINT)).evidence)
