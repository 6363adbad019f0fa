"""Gradients: against finite differences, between implementations, and faults of the backward pass.

A fault here leaves every value of the forward pass as it is: nothing but gradients can show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from witnesses import LAYERS, changed, inputs_for, small, steps, whole

import jaxllama.model
from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.errors import InputError
from jaxllama.masks import Tokens
from jaxllama.model import Llama
from parity.inputs import Inputs, visible_keys
from parity.locate import first_divergence
from parity.lockstep.participants import Participant, Role
from parity.result import Divergence, TapResult
from parity.runner import gradients, run
from parity.subjects import select
from parity.subjects.base import Arrays, GeneratedRun
from parity.subjects.hf.subject import HFLlama
from parity.subjects.jaxllama.grad import Loss, by_stage, loss_of
from parity.subjects.jaxllama.run import mask_spec, tokens_of
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.loss import next_token_loss, successors
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import AXES, GRAD_TAPS, expected_names, gradient_names, in_flow_order, split_name

T = 11


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small()


@pytest.fixture(scope="module")
def packed(checkpoint: Checkpoint) -> Inputs:
    return inputs_for(checkpoint, "packed", T)


class Faulty:
    """The JAX model with parts exchanged, and perhaps another loss."""

    name, dtype, internal_dtype, can_force = "faulty", "f64", "f64", False
    absent: frozenset[str] = frozenset()

    def __init__(
        self, checkpoint: Checkpoint, change: Callable[[Llama], None], loss: Loss = loss_of
    ) -> None:
        self._model, self._loss = load_model(checkpoint, dtype="float64"), loss
        change(self._model)

    def start(self, inputs: Inputs) -> Any:
        return JaxLlama(self._model, "f64").start(inputs)

    def start_grad(self, inputs: Inputs) -> GeneratedRun:
        return GeneratedRun(by_stage(self._model, inputs, self._loss))


def judged(checkpoint: Checkpoint, subject: Any, *inputs: Inputs) -> list[TapResult]:
    records = gradients.compare_gradients(checkpoint, {subject.dtype: subject}, (), inputs)
    return [row for record in records for row in record.rows]


def located(checkpoint: Checkpoint, subject: Any, inputs: Inputs) -> Divergence:
    found = first_divergence(judged(checkpoint, subject, inputs))
    assert found is not None
    return found


# The names and their order.


@pytest.mark.parametrize("tied", [False, True])
def test_names_are_those_of_the_parameters_and_taps(tied: bool) -> None:
    names = gradient_names(LAYERS, tied=tied)
    assert {split_name(name)[0] for name in names} <= set(GRAD_TAPS) <= set(AXES)
    stored = small(tied=tied).tensors
    assert {n.removeprefix("grad.") for n in names if n.endswith(".weight")} == set(stored)
    activations = {f"grad.{n}" for n in expected_names(LAYERS) if n.startswith("layers.")}
    assert activations <= set(names)
    assert names[0] == "loss" and names[-1] == "grad.model.embed_tokens.weight"


def test_a_backward_pass_is_read_from_its_end() -> None:
    names = ["grad.layers.0.output", "grad.layers.10.input", "loss", "logits", "grad.embed"]
    names += ["grad.layers.10.q_proj", "grad.model.layers.10.self_attn.q_proj.weight"]
    assert in_flow_order(names) == [
        "logits",
        "loss",
        "grad.layers.10.q_proj",
        "grad.model.layers.10.self_attn.q_proj.weight",
        "grad.layers.10.input",
        "grad.layers.0.output",
        "grad.embed",
    ]


# The reference.


def test_successors_pass_over_pads_and_end_with_documents(checkpoint: Checkpoint) -> None:
    one = inputs_for(checkpoint, "packed", 5)
    valid = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    segments = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 2, 3, 4]], np.int32)
    found = successors(replace(one, valid=valid, segments=segments))
    columns = [(0, 0, 2), (0, 2, 3), (1, 1, 2), (1, 3, 4)]
    assert found == [(b, t, int(one.tokens[b, after])) for b, t, after in columns]


def test_the_reference_agrees_with_finite_differences(packed: Inputs) -> None:
    """One random direction through all parameters at once: forward passes alone, no autograd."""
    rng = np.random.default_rng(3)
    checkpoint = changed(small(), lambda weights: None)
    directions = {n: rng.normal(size=checkpoint.read(n).shape) for n in checkpoint.tensors}

    def loss_at(step: float) -> float:
        def move(weights: dict[str, np.ndarray]) -> None:
            for name in weights:
                weights[name] = weights[name].astype(np.float64) + step * directions[name]

        moved = TorchReference(changed(checkpoint, move), dtype="f64")
        logits = torch.from_numpy(whole(moved, packed)["logits"])
        return float(next_token_loss(logits, packed))

    taps = steps(TorchReference(checkpoint, dtype="f64").start_grad(packed))
    slope = sum(float((taps[f"grad.{n}"] * d).sum()) for n, d in directions.items())
    step = 1e-7
    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(slope, rel=1e-5)
    assert float(taps["loss"]) == pytest.approx(loss_at(0.0), rel=1e-14)


def test_the_loss_is_pytorchs_own_cross_entropy(checkpoint: Checkpoint, packed: Inputs) -> None:
    logits = torch.randn(*packed.tokens.shape, checkpoint.config.vocab_size, dtype=torch.float64)
    labels = torch.full(packed.tokens.shape, -100)
    for b, t, target in successors(packed):
        labels[b, t] = target
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert float(next_token_loss(logits, packed)) == pytest.approx(float(theirs), rel=1e-14)


# Clean runs.


def test_a_clean_run_is_equal_in_both_dtypes_and_by_all_witnesses() -> None:
    tied = small(tied=True)
    result = run.run(tied, modes="grad", dtypes="all", reference="torch,hf", length=T)
    assert result.verdict == "equal"
    assert {(row.lane, row.mode) for row in result.rows} == {
        (lane, mode) for lane in ("f64", "f32") for mode in ("grad", "production")
    }
    assert result.compared == result.expected == len(gradient_names(LAYERS, tied=True))
    assert {(w.witness, w.lane) for w in result.witnesses} == {
        ("torch", "f64"),
        ("torch", "f32"),
        ("hf", "f32"),
    }
    assert [one["scenario"] for one in result.inputs] == list(gradients.SCENARIOS)
    assert max(row.error for row in result.rows if row.lane == "f64") < 1e-11
    assert any("not in bfloat16" in note for note in result.notes)
    assert not result.absent
    by_hf = next(w for w in result.witnesses if w.witness == "hf")
    assert "grad.layers.q_proj" in by_hf.absent and "layers.q_proj" not in by_hf.absent


def test_a_witness_slightly_wrong_in_its_gradients_is_called_wrong(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    class Wrong(TorchReference):
        """Multiplies the scores by a thousandth too much."""

        def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return super().scores(q, k) * 1.001

    line_up = gradients.participants_for

    def with_another(*given: Any) -> dict[str, list[Participant]]:
        wrong = Wrong(checkpoint, dtype="f32")
        wrong.name = "wrong"
        entry = Participant(wrong, frozenset({Role.WITNESS}), ("grad",))
        return {lane: [*present, entry] for lane, present in line_up(*given).items()}

    monkeypatch.setattr(gradients, "participants_for", with_another)
    result = run.run(checkpoint, modes="grad", dtypes="f32", length=T)
    assert result.verdict == "inconclusive"
    assert {row.witness for row in result.disagreeing} == {"wrong"}


@pytest.fixture(scope="module")
def with_empty_rows(checkpoint: Checkpoint) -> Inputs:
    """A padded batch that ends in a row of pads alone, whose queries see nothing."""
    one = inputs_for(checkpoint, "left_padded", T)
    valid = one.valid & (np.arange(len(one.valid)) < len(one.valid) - 1)[:, None]
    seen = mask_spec(one).bind(*[tokens_of(replace(one, valid=valid), slice(None))] * 2)
    assert not np.asarray(seen.to_bool())[-1].any()
    return replace(one, valid=valid, mask=visible_keys(valid))


def test_empty_rows_leave_gradients_finite_and_equal(
    checkpoint: Checkpoint, with_empty_rows: Inputs
) -> None:
    subject = Faulty(checkpoint, lambda model: None)
    taps = steps(subject.start_grad(with_empty_rows))
    assert all(np.isfinite(array).all() for array in taps.values())
    # A pad's embedding moves nothing.
    assert not taps["grad.embed"][~with_empty_rows.valid].any()
    padded = inputs_for(checkpoint, "right_padded", T)
    rows = judged(checkpoint, subject, with_empty_rows, padded)
    assert all(row.passed for row in rows)
    assert {row.scenario for row in rows} == {"left_padded", "right_padded"}


def _infinite_fill(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> jax.Array:
    """Attend with -inf added to hidden scores: right forwards, once empty rows are set to zero."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * jnp.asarray(options["scale"], q.dtype)
    visible_keys = mask.any(-1)[:, None, :, None]
    scores = scores + jnp.where(mask[:, None], 0.0, -jnp.inf)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    probs = weights / weights.sum(-1, keepdims=True)
    probs = options["tap"]("attn_probs", jnp.where(visible_keys, probs, jnp.zeros_like(probs)))
    return options["tap"]("attn_context", jnp.einsum("bnts,bsnh->btnh", probs, v))


def test_a_mask_of_minus_infinity_is_seen_to_spoil_gradients(
    checkpoint: Checkpoint, with_empty_rows: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxllama.model, "attend", _infinite_fill)

    def change(model: Llama) -> None:
        model.backend = "dot_product"  # another program than the others'

    subject = Faulty(checkpoint, change)
    subject.absent = frozenset({"grad.layers.attn_scores"})
    found = located(checkpoint, subject, with_empty_rows)
    # Pads' activations are not compared; a weight's gradient is a sum over them too.
    assert found.row.tap == f"grad.model.layers.{LAYERS - 1}.self_attn.k_proj.weight"
    assert any("NaN" in problem for problem in found.row.problems)


# Faults of the backward pass.


def _pads_counted(logits: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    return loss_of(logits, ids, replace(tokens, valid=jnp.ones_like(tokens.valid)))


def test_the_compiled_model_is_judged_too(checkpoint: Checkpoint, packed: Inputs) -> None:
    class OnlyWhole(JaxLlama):
        """Right stage by stage; in one piece its loss counts pads."""

        def production(self) -> Any:
            return Faulty(checkpoint, lambda _: None, _pads_counted)

    rows = judged(checkpoint, OnlyWhole(load_model(checkpoint, dtype="float64"), "f64"), packed)
    assert all(row.passed for row in rows if row.mode == "grad")
    assert not all(row.passed for row in rows if row.mode == "production")


def test_a_fused_backend_shows_no_gradients_of_weights(
    checkpoint: Checkpoint, packed: Inputs
) -> None:
    fused = JaxLlama(load_model(checkpoint, dtype="float32"), "f32", backend="dot_product")
    shown = set(steps(fused.start_grad(packed)))
    hidden = set(gradient_names(LAYERS, tied=False)) - shown
    assert hidden and {split_name(name)[0] for name in hidden} == fused.absent & set(GRAD_TAPS)


def test_a_gradient_that_is_missing_leaves_the_verdict_open(
    checkpoint: Checkpoint, packed: Inputs
) -> None:
    class Forgetful(Faulty):
        def start_grad(self, inputs: Inputs) -> GeneratedRun:
            run = super().start_grad(inputs)

            def stages() -> Iterator[Arrays]:
                for _ in range(LAYERS + 2):
                    taps = run.step()
                    taps.pop("grad.model.norm.weight", None)
                    yield taps

            return GeneratedRun(stages())

    subject = Forgetful(checkpoint, lambda _: None)
    (record,) = gradients.compare_gradients(checkpoint, {subject.dtype: subject}, (), [packed])
    assert record.unmatched == {"grad.model.norm.weight"}


# What cannot be run.


def test_what_has_no_gradient_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "load_model", lambda *_, **__: pytest.fail("loaded first"))
    with pytest.raises(InputError, match="gradients are judged in f64 and f32"):
        run.run(small(), modes="grad", dtypes="bf16")
    with pytest.raises(InputError, match="at least 2 tokens"):
        run.run(small(), modes="grad", prompt=[5], scenarios="causal")


def test_a_subject_without_gradients_is_told_so(checkpoint: Checkpoint, packed: Inputs) -> None:
    class Forward:
        name, dtype, absent, can_force, internal_dtype = "mine", "f64", frozenset(), False, "f64"

    with pytest.raises(InputError, match="mine: offers no gradients"):
        judged(checkpoint, Forward(), packed)


def test_the_pads_id_as_a_token_has_a_gradient_in_transformers_too() -> None:
    padded = small(pad_token_id=7)
    inputs = inputs_for(padded, "causal", T)
    tokens = inputs.tokens.copy()
    tokens[0, 4] = 7
    inputs = replace(inputs, tokens=tokens)
    found = [steps(one.start_grad(inputs)) for one in (HFLlama(padded), TorchReference(padded))]
    ours, wanted = (one["grad.model.embed_tokens.weight"] for one in found)
    assert np.abs(wanted[7]).max() > 0
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)
