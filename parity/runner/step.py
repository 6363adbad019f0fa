"""`--mode step`: one step of `jaxllama.train`, and of PyTorch's AdamW on PyTorch's gradients.

A plain one, and one with each mitigation that is asked for.

In float64, and of the parameters after it. A step is some 1e8 times as sensitive to a gradient
near zero as to others: AdamW divides it by itself and epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import jax
import numpy as np
import torch
from jax.sharding import NamedSharding, PartitionSpec

from jaxllama.checkpoint import from_model, load_model
from jaxllama.errors import InputError, argument
from jaxllama.model import Llama
from jaxllama.sharding.hosts import host_array
from parity.exact import exact_row, reference_witness
from parity.inputs import Inputs
from parity.lockstep.comparator import PassResult
from parity.result import TapResult
from parity.runner.mitigations import PLAIN, STEPS_BEFORE, StepCase, cases_of, kept_by, norm_weights
from parity.subjects.base import Arrays, CheckpointLike, Subject
from parity.subjects.jaxllama.grad import named_parameters
from parity.subjects.jaxllama.rows import rows_added, with_rows
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch.arrays import to_numpy
from parity.subjects.torch_reference.mitigated import MitigatedReference
from parity.subjects.torch_reference.subject import TorchReference

MODE, LANE, SCENARIO = "step", "f64", "packed"
RATE, EPS, DECAY = 3e-3, 1e-6, 0.2
SETTINGS: dict[str, Any] = {"learning_rate": RATE, "eps": EPS, "weight_decay": DECAY}
# Of the learning rate. Gradients differ by some 1e-15 here, near zero that over epsilon: 1e-9.
TOLERANCE = 1e-6


def check_subject(subject: Subject, *, alone: bool) -> TypeGuard[JaxLlama]:
    """Return whether a subject can be trained, or refuse it if nothing else was asked for.

    Raises:
        InputError: it is no model of jaxllama's.
    """
    able = isinstance(subject, JaxLlama)
    if alone and not able:
        raise InputError(
            f"mode {MODE} is about jaxllama.train, which does not train the subject "
            f"{subject.name}; leave out {argument('subject')}, or add another mode"
        )
    return able


def compare_step(
    checkpoint: CheckpointLike, subject: JaxLlama, inputs: Inputs, mitigations: tuple[str, ...] = ()
) -> PassResult:
    """Compare a model's parameters after one step with PyTorch's.

    Args:
        checkpoint: what both begin with.
        subject: of float64.
        inputs: what both take the step on.
        mitigations: of each of which one more step is taken.

    Raises:
        InputError: optax is not installed, or the subject cannot be trained so.
    """
    rows, gap = [], 0.0
    for case in cases_of(mitigations):
        begun, expected, case = _by_torch(checkpoint, inputs, case)
        found = _by_jaxllama(subject, inputs, case)
        for name in expected:
            problems = problems_of(begun, expected, found, name)
            rows.append(exact_row(case.row(name), LANE, inputs.name, MODE, problems))
        gap = max(gap, *(rates_apart(expected[n], found[n]) for n in expected if n in found))
    return PassResult(rows, [reference_witness("torch.optim.AdamW", LANE, MODE, rows, gap)])


def count_names(rows: list[TapResult]) -> int:
    """Return of how many parameters a run's rows are."""
    return sum(row.mode == MODE for row in rows)


def rates_apart(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference over the learning rate."""
    return float(np.abs(expected - found).max() / RATE)


def problems_of(
    begun: Mapping[str, np.ndarray], expected: Arrays, found: Arrays, name: str
) -> list[str]:
    """Return what is wrong with a parameter after a step."""
    if name not in found:
        return ["is no parameter of the trained model"]
    right, own = expected[name], found[name]
    if own.shape != right.shape or own.dtype != right.dtype:
        return [f"{own.dtype} {own.shape} after the step, expected {right.dtype} {right.shape}"]
    apart = np.abs(right - own) / RATE
    wrong = ~(apart <= TOLERANCE)  # NaN is wrong
    if not wrong.any():
        return []
    at = np.unravel_index(np.argmax(np.where(wrong, apart, -1)), right.shape)
    moved, wanted = own[at] - begun[name][at], right[at] - begun[name][at]
    return [
        f"{wrong.sum()} of {wrong.size} numbers moved otherwise: {[*map(int, at)]} by {moved:.6g}, "
        f"expected {wanted:.6g}"
    ]


def _by_torch(
    checkpoint: CheckpointLike, inputs: Inputs, case: StepCase
) -> tuple[Arrays, Arrays, StepCase]:
    """Return the parameters before and after a step of PyTorch's AdamW, and what it clipped at."""
    settings, norms = case.settings, norm_weights(case, checkpoint.config)
    reference = MitigatedReference(
        checkpoint, settings, case.z_loss, inputs, kept_by(settings), norms
    )
    gradients = {
        name: torch.from_numpy(np.array(gradient))
        for name, gradient in gradients_by_torch(reference, inputs).items()
    }
    norm = torch.nn.utils.get_total_norm([*gradients.values()])
    case = case.with_clip(float(norm), sum(x.numel() for x in gradients.values()), EPS)
    if case.clip is not None:
        reference.clip_gradients([*gradients.values()], case.clip)
    weights = {
        name: torch.nn.Parameter(reference.weights[name].to(torch.float64).clone())
        for name in gradients
    }
    for name, gradient in gradients.items():
        weights[name].grad = gradient
    begun = {name: to_numpy(weight.detach()).copy() for name, weight in weights.items()}
    vectors = [weight for name, weight in weights.items() if "norm" in name]
    matrices = [weight for name, weight in weights.items() if "norm" not in name]
    torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=RATE,
        eps=EPS,
    ).step()
    case = case.with_tau({layer: to_numpy(x) for layer, x in reference.largest.items()})
    if (tau := case.settings.qk_clip) is not None:
        reference.clip(weights, tau)
    after = {name: to_numpy(weight.detach()) for name, weight in weights.items()}
    return begun, after, case


def gradients_by_torch(reference: TorchReference, inputs: Inputs) -> Arrays:
    """Return the gradients of all parameters by canonical name."""
    run = reference.start_grad(inputs)
    gradients: Arrays = {}
    for _ in range(reference.config.num_hidden_layers + 2):
        stage = run.step()
        gradients |= {
            name.removeprefix("grad."): value
            for name, value in stage.items()
            if name.endswith(".weight")
        }
    return gradients


def _by_jaxllama(subject: JaxLlama, inputs: Inputs, case: StepCase) -> Arrays:
    """Return the parameters after a step of jaxllama's, by canonical name."""
    with training_here():
        from jaxllama.train.weights import QK_NORMS, path_of
    model = _stacked(subject.model) if case.name else subject.model
    _, weights = wide_weights(model)
    layers, norms = range(model.config.num_hidden_layers), norm_weights(case, model.config)
    for name in QK_NORMS.values() if norms else ():
        stacked = np.stack([norms[_of_layer(name, layer)] for layer in layers])
        weights[name] = _everywhere(model, stacked)
    after = dict(weights_after(model, inputs, weights, {}, case=case))
    added = {
        _of_layer(name, layer): values
        for name in QK_NORMS.values()
        if (stack := after.pop(name, None)) is not None
        for layer, values in enumerate(host_array(stack))
    }
    return named_parameters(model, {path_of(n): weight for n, weight in after.items()}) | added


@contextmanager
def training_here() -> Iterator[None]:
    """Say what training needs where it is not installed.

    Raises:
        InputError: something is not.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"mode {MODE} needs {error.name}, which is not installed; pip install 'jaxllama[train]'"
        ) from None


def wide_weights(model: Llama) -> tuple[Any, dict[str, jax.Array]]:
    """Return a model's graph and its weights in float64."""
    with training_here():
        from jaxllama.train.weights import taken_apart
    graph, weights = taken_apart(model)
    return graph, {name: weight.astype(np.float64) for name, weight in weights.items()}


def weights_after(
    model: Llama,
    inputs: Inputs,
    weights: Mapping[str, jax.Array],
    frozen: Mapping[str, jax.Array],
    *,
    count: int = 1,
    case: StepCase = PLAIN,
) -> Mapping[str, jax.Array]:
    """Return what is trained after so many steps of jaxllama's on the same inputs.

    Args:
        model: whose graph and mesh it is.
        inputs: of each step.
        weights: what is trained.
        frozen: what is not.
        count: of steps.
        case: what is done in each.

    Raises:
        InputError: optax is not installed.
    """
    with training_here():
        from jaxllama.train import optimiser as optimisers
        from jaxllama.train import step as steps
        from jaxllama.train.config import OptimiserSettings
    graph, _ = wide_weights(model)
    inputs = with_rows(inputs, rows_added(model, len(inputs.tokens)))
    settings = OptimiserSettings(**SETTINGS, clip=case.clip)
    optimiser = optimisers.make_optimiser(settings, steps=10)

    def everywhere(value: Any) -> jax.Array:
        return _everywhere(model, value)

    state = steps.initial_state(dict(weights), optimiser, everywhere)
    state = state._replace(step=everywhere(np.int32(STEPS_BEFORE)))
    segments = np.zeros_like(inputs.tokens) if inputs.segments is None else inputs.segments
    parts = inputs.tokens, inputs.positions, segments, inputs.valid
    batch = steps.Batch(*(everywhere(np.asarray(part)[None]) for part in parts))

    def step(state: Any, frozen: Any, batch: Any) -> Any:
        return steps.train_step(
            graph, optimiser, state, frozen, batch, z_loss=case.z_loss, mitigation=case.settings
        )

    stepped = jax.jit(step)
    for _ in range(count):
        state, _ = stepped(state, dict(frozen), batch)
    return state.weights


def _everywhere(model: Llama, value: Any) -> jax.Array:
    """Return a small array on all devices of a model's mesh."""
    mesh = None if model.sharding is None else model.sharding.mesh
    where = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.device_put(np.asarray(value), where)


def _stacked(model: Llama) -> Llama:
    """Return a model in the form that is trained."""
    if model.form == "stacked":
        return model
    mesh: Any = None if model.sharding is None else model.sharding.mesh
    made = load_model(from_model(model), dtype=LANE, param_dtype=LANE, form="stacked", mesh=mesh)
    made.backend = model.backend
    return made


def _of_layer(name: str, layer: int) -> str:
    """Return the canonical name of a layer's part of a weight of all layers."""
    return name.replace("layers.", f"model.layers.{layer}.")
