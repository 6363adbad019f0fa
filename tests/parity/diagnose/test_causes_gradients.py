"""Causes of wrong gradients: from a run to its cause, and the reference wrong backwards alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from witnesses import LAYERS, inputs_for, small, steps

from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.model import Linear, Llama
from parity.diagnose.cause import catalogue
from parity.diagnose.causes.gradients.softmax import without_row_sum
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.mutations import Mutation, change_gradient, stop_gradient, with_gradient
from parity.diagnose.recording import record_backward
from parity.diagnose.search import diagnose
from parity.runner import run
from parity.selftest.faults import catalogue as catalogued
from parity.selftest.results import Injection
from parity.selftest.run import perform
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.subject import TorchReference

T = 9


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small()


def test_gradients_can_be_made_wrong_where_values_stay_right() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for function, gradient in (
        (lambda v: change_gradient(v, lambda g: 3 * g), [3.0, 3.0]),
        (stop_gradient, [0.0, 0.0]),
        (lambda v: with_gradient(v, lambda w: w.view_as(w), lambda g: g * 7), [7.0, 7.0]),
    ):
        y = function(x)
        assert torch.equal(y, x)
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == gradient


def test_without_changes_it_is_the_reference(checkpoint: Checkpoint) -> None:
    inputs = inputs_for(checkpoint, "packed", T)
    wrong, right = (
        steps(one(checkpoint).start_grad(inputs)) for one in (MutatedReference, TorchReference)
    )
    assert wrong.keys() == right.keys()
    assert all(np.array_equal(wrong[name], right[name]) for name in right)


def test_a_change_backwards_leaves_the_forward_pass_alone(checkpoint: Checkpoint) -> None:
    inputs = inputs_for(checkpoint, "packed", T)
    reference = MutatedReference(checkpoint, (Mutation("attn_probs", without_row_sum),))
    ours, theirs = (steps(one.start(inputs)) for one in (reference, TorchReference(checkpoint)))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    wrong, right = (
        steps(one.start_grad(inputs)) for one in (reference, TorchReference(checkpoint))
    )
    assert np.array_equal(wrong["loss"], right["loss"])
    tap = f"grad.layers.{LAYERS - 1}.attn_scores"
    assert not np.allclose(wrong[tap], right[tap])


class _HalfGradient(Linear):
    def __call__(self, x: jax.Array) -> jax.Array:
        half = super().__call__(x) * 0.5
        return half + jax.lax.stop_gradient(half)


def test_a_run_names_what_is_wrong_backwards(checkpoint: Checkpoint) -> None:
    def subject(model: Llama, dtype: str) -> JaxLlama:
        made = JaxLlama(model, dtype)
        made.model.layers.mlp.up_proj.__class__ = _HalfGradient
        return made

    result = run.run(checkpoint, modes="grad", dtypes="f64", subject=subject, length=T)
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    name = f"model.layers.{LAYERS - 1}.mlp.up_proj.weight"
    assert result.first_divergence.row.tap == f"grad.{name}"
    assert result.first_divergence.kind == "backward"
    assert result.cause is not None
    assert (result.cause.id, result.cause.confirmed) == ("gradient-scaled", True)
    assert result.cause.effective == "factor 0.5"
    assert "gradient through up_proj times 0.5" in result.cause.summary


def test_what_is_wrong_forwards_is_named_first(checkpoint: Checkpoint) -> None:
    result = run.run(checkpoint, modes="grad", dtypes="f64", overrides=["rope_theta=1e6"], length=T)
    assert result.first_divergence is not None and result.first_divergence.row.tap == "loss"
    assert result.first_divergence.kind == "loss"
    assert result.cause is not None
    assert (result.cause.id, result.cause.confirmed) == ("rope-theta", True)


class _Detached(Linear):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(super().__call__(x))


def test_two_faults_backwards_are_named_one_after_the_other(checkpoint: Checkpoint) -> None:
    with jax.enable_x64(True):
        model = load_model(checkpoint, dtype="float64")
        model.layers.mlp.up_proj.__class__ = _HalfGradient
        model.layers.self_attn.v_proj.__class__ = _Detached
        inputs = inputs_for(checkpoint, "packed", T)
        found = diagnose(record_backward(JaxLlama(model, "f64"), inputs, LAYERS), checkpoint)
    assert found is not None and found.confirmed
    assert [found.id, *(one.id for one in found.others)] == ["gradient-scaled", "gradient-stopped"]


def test_a_fault_backwards_behind_one_forwards_is_named_too(checkpoint: Checkpoint) -> None:
    def subject(model: Llama, dtype: str) -> JaxLlama:
        made = JaxLlama(model, dtype)
        made.model.layers.mlp.up_proj.__class__ = _HalfGradient
        return made

    result = run.run(
        checkpoint,
        modes="grad",
        dtypes="f64",
        overrides=["rope_theta=1e6"],
        subject=subject,
        length=T,
    )
    assert result.cause is not None and result.cause.confirmed
    assert result.cause.id == "rope-theta"
    assert [one.id for one in result.cause.others] == ["gradient-scaled"]


def test_what_there_was_no_time_for_is_told(checkpoint: Checkpoint) -> None:
    with jax.enable_x64(True):
        model = load_model(checkpoint, dtype="float64")
        model.layers.mlp.up_proj.__class__ = _HalfGradient
        inputs = inputs_for(checkpoint, "packed", T)
        recording = record_backward(JaxLlama(model, "f64"), inputs, LAYERS)
        found = diagnose(recording, checkpoint, seconds=-1.0)
    assert found is not None and not found.confirmed
    assert any("not tried were 2 hypotheses" in line for line in found.evidence)


class _Sheared(Linear):
    """Hands each feature's gradient to its neighbour: in no catalogue."""

    def __call__(self, x: jax.Array) -> jax.Array:
        function = jax.custom_vjp(lambda y: y)
        function.defvjp(lambda y: (y, None), lambda _, g: (jax.numpy.roll(g, 1, axis=-1),))
        return function(super().__call__(x))


def test_an_unknown_fault_is_placed_and_called_unexplained(checkpoint: Checkpoint) -> None:
    with jax.enable_x64(True):
        model = load_model(checkpoint, dtype="float64")
        model.layers.self_attn.o_proj.__class__ = _Sheared
        subject = JaxLlama(model, "f64")
        inputs = inputs_for(checkpoint, "packed", T)
        found = diagnose(record_backward(subject, inputs, LAYERS), checkpoint)
    assert found is not None and not found.id and not found.confirmed
    assert f"grad.model.layers.{LAYERS - 1}.self_attn.o_proj.weight" in found.summary


def test_a_clean_backward_pass_has_no_cause(checkpoint: Checkpoint) -> None:
    with jax.enable_x64(True):
        subject = JaxLlama(load_model(checkpoint, dtype="float64"), "f64")
        inputs = inputs_for(checkpoint, "packed", T)
        assert diagnose(record_backward(subject, inputs, LAYERS), checkpoint) is None


def test_there_are_causes_for_the_loss_and_for_gradients() -> None:
    kinds = [cause_id.split("-")[0] for cause_id in catalogue()]
    assert kinds.count("gradient") >= 10 and kinds.count("loss") >= 2


# One of each family, in float64: a fault of the backward pass leaves all values as they are.
BACKWARDS = [
    one
    for one in catalogued()
    if (one.mode, one.lane) == ("grad", "f64") and one.model != "smollm2"  # which the selftest runs
]
FAULTS = {fault.family: fault for fault in reversed(BACKWARDS)}


@pytest.mark.parametrize("family", sorted(FAULTS))
def test_a_fault_of_the_backward_pass_is_placed_and_named(family: str) -> None:
    row = perform(FAULTS[family])
    assert isinstance(row, Injection) and not row.error
    assert row.detected and row.located and row.named and row.confirmed
