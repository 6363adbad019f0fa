"""`--mode step --lora`: LoRA's factors after AdamW, and the weights beside them, as they were.

PyTorch's side is written as LoRA is defined: W + alpha / r B A is multiplied out, and its gradient
is handed on to A and B by autograd. B begins with zeros, so that A's gradient is zero in a first
step: two are taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument
from jaxllama.train.config import LoraSettings, read_config
from parity.exact import exact_row, reference_witness
from parity.inputs import Inputs
from parity.lockstep.comparator import PassResult
from parity.runner.step import (
    DECAY,
    EPS,
    LANE,
    MODE,
    RATE,
    gradients_by_torch,
    problems_of,
    rates_apart,
    training_here,
    weights_after,
    wide_weights,
)
from parity.subjects.base import Arrays, CheckpointLike
from parity.subjects.jaxllama.grad import named_parameters
from parity.subjects.jaxllama.subject import JaxLlama, with_config
from parity.subjects.torch.arrays import to_numpy
from parity.subjects.torch_reference.subject import TorchReference

STEPS = 2
# How far a mean of squares may be from what it should be, in its own standard deviations.
_FAR = 6.0
_MODULES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}


@dataclass
class _Twin:
    """LoRA in PyTorch.

    Attributes:
        a: factors by name of the module.
        b: likewise.
        alpha: what their product is multiplied with, before it is divided by the rank.
        rslora: whether it is divided by the root of the rank instead.
    """

    a: dict[str, torch.nn.Parameter]
    b: dict[str, torch.nn.Parameter]
    alpha: float
    rslora: bool

    def product(self, module: str) -> torch.Tensor:
        """Return alpha / r B A."""
        rank = self.a[module].shape[0]
        scale = self.alpha / (rank**0.5 if self.rslora else rank)
        return scale * (self.b[module] @ self.a[module])

    def factors(self) -> Arrays:
        """Return them by PEFT's names, without what these begin with."""
        return {
            f"{module}.lora_{letter}.weight": to_numpy(one.detach()).copy()
            for letter, held in (("A", self.a), ("B", self.b))
            for module, one in held.items()
        }


def compare_lora_step(
    checkpoint: CheckpointLike,
    opened: Checkpoint,
    subject: JaxLlama,
    inputs: Inputs,
    settings: LoraSettings,
) -> PassResult:
    """Compare factors after two steps with PyTorch's, and all other weights with what they were.

    Args:
        checkpoint: what PyTorch begins with.
        opened: the same as jaxllama has read it.
        subject: whose configuration and mesh are taken; training has its layers stacked.
        inputs: what both take the steps on.
        settings: of the factors. New ones are drawn by jaxllama: PyTorch begins with the same A,
            once it is what PEFT would draw, and with zeros. Of an adapter each reads its files.

    Raises:
        CheckpointError, InputError: an adapter that cannot be read or trained on, or optax is not
            installed.
    """
    begun, found, kept = _by_jaxllama(opened, _stacked(opened, subject), inputs, settings)
    twin = _made(checkpoint.config, settings, begun)
    before = twin.factors()
    _train(checkpoint, inputs, twin)
    expected = twin.factors()
    rows = []
    for name in expected:
        problems = problems_of(before, expected, found, name)
        if settings.adapter is None:
            problems += _wrongly_begun(name, begun.get(name))
        rows.append(exact_row(f"step.{name}", LANE, inputs.name, MODE, problems))
    rows += [
        exact_row(
            f"step.{name}", LANE, inputs.name, MODE, _moved(checkpoint.read(name), kept.get(name))
        )
        for name in checkpoint.tensors
    ]
    gap = max(rates_apart(expected[name], found[name]) for name in expected if name in found)
    witness = reference_witness("torch.optim.AdamW of LoRA", LANE, MODE, rows, gap)
    return PassResult(rows, [witness])


def lora_settings(
    given: LoraSettings | str | Path | None, modes: Sequence[str]
) -> LoraSettings | None:
    """Return settings, of a training's file if that is given; None if nothing is.

    Raises:
        InputError: no step is taken, or the file has no [lora].
        CheckpointError, ConfigError: as for `jaxllama.train.read_config`.
    """
    if given is None:
        return None
    if MODE not in modes:
        raise InputError(
            f"{argument('lora', str(given))}: mode {MODE} takes it, which is not asked for; give "
            f"{argument('modes', MODE)} too"
        )
    settings = given if isinstance(given, LoraSettings) else read_config(given).lora
    if settings is None:
        raise InputError(f"{argument('lora', str(given))}: the file has no section [lora]")
    return settings


def _stacked(opened: Checkpoint, subject: JaxLlama) -> JaxLlama:
    """Return a subject as training has it: layers stacked, weights of float64."""
    model = load_model(
        with_config(opened, subject.model.config),
        dtype=LANE,
        param_dtype=LANE,
        form="stacked",
        mesh=subject.model.sharding,
    )
    return JaxLlama(model, LANE)


def _moved(base: np.ndarray, kept: np.ndarray | None) -> list[str]:
    if kept is None:
        return ["is no parameter of the model whose factors are trained"]
    moved = kept != base.astype(kept.dtype)
    if not moved.any():
        return []
    return [f"{moved.sum()} of {moved.size} numbers moved, though factors alone are trained"]


def _wrongly_begun(name: str, values: np.ndarray | None) -> list[str]:
    """Return how first factors differ from what PEFT draws: uniform within 1 / sqrt(in), zeros."""
    if values is None:
        return ["has no factors"]
    if name.endswith("lora_B.weight"):
        return ["does not begin with zeros"] if values.any() else []
    scaled = values * values.shape[1] ** 0.5
    square, size = float(np.mean(scaled**2)), scaled.size
    # Of a number uniform within 1 the square has mean 1/3 and variance 4/45.
    away = abs(square - 1 / 3) / (4 / 45 / size) ** 0.5
    if float(np.abs(scaled).max()) <= 1 and away < _FAR:
        return []
    return [
        f"begins with numbers up to {np.abs(scaled).max():.3g} / sqrt(in) whose squares have the "
        f"mean {square:.3g} / in, expected up to 1 and 0.333"
    ]


def _made(config: LlamaConfig, settings: LoraSettings, begun: Arrays) -> _Twin:
    """Return PyTorch's factors before the first step."""
    if settings.adapter is not None:
        return _read(Path(settings.adapter))
    rank, twin = settings.rank or 8, _Twin({}, {}, settings.alpha or 8, settings.rslora)
    for layer in range(config.num_hidden_layers):
        for kind in settings.targets or ("q_proj", "v_proj"):
            module = f"model.layers.{layer}.{_MODULES[kind]}.{kind}"
            a = torch.from_numpy(begun[f"{module}.lora_A.weight"].copy())
            rows = begun[f"{module}.lora_B.weight"].shape[0]
            twin.a[module] = torch.nn.Parameter(a)
            twin.b[module] = torch.nn.Parameter(torch.zeros(rows, rank, dtype=torch.float64))
    return twin


def _read(adapter: Path) -> _Twin:
    """Return the factors of an adapter by PEFT's own files."""
    stated = json.loads((adapter / "adapter_config.json").read_text())
    twin = _Twin({}, {}, stated["lora_alpha"], bool(stated.get("use_rslora")))
    for name, values in safetensors.torch.load_file(adapter / "adapter_model.safetensors").items():
        module, letter, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        held = twin.a if letter == "lora_A" else twin.b
        held[module] = torch.nn.Parameter(values.to(torch.float64))
    return twin


def _train(checkpoint: CheckpointLike, inputs: Inputs, twin: _Twin) -> None:
    optimiser = torch.optim.AdamW(
        [*twin.a.values(), *twin.b.values()], lr=RATE, eps=EPS, weight_decay=DECAY
    )
    for _ in range(STEPS):
        optimiser.zero_grad()
        reference = TorchReference(checkpoint, dtype=LANE)
        merged = {
            f"{module}.weight": reference.weights[f"{module}.weight"].to(torch.float64)
            + twin.product(module)
            for module in twin.a
        }
        whole = {name: reference.weights[name] for name in checkpoint.tensors}
        reference.weights = whole | {name: value.detach() for name, value in merged.items()}
        slopes = gradients_by_torch(reference, inputs)
        torch.autograd.backward(
            [*merged.values()], [torch.from_numpy(np.array(slopes[name])) for name in merged]
        )
        optimiser.step()


def _by_jaxllama(
    opened: Checkpoint, subject: JaxLlama, inputs: Inputs, settings: LoraSettings
) -> tuple[Arrays, Arrays, Arrays]:
    """Return jaxllama's factors before and after the steps, and its other weights after them."""
    with training_here():
        from jaxllama.train import lora
        from jaxllama.train.weights import SCALE, path_of
    _, weights = wide_weights(subject.model)
    begun = lora.adapt(settings, weights, opened, subject.model.sharding)
    after = weights_after(subject.model, inputs, begun.factors, begun.frozen, count=STEPS)
    held = {n: w for n, w in (begun.frozen | dict(after)).items() if not n.endswith(SCALE)}
    kept = {path_of(name): w for name, w in held.items() if name.endswith("weight")}
    return _by_layer(begun.factors), _by_layer(after), named_parameters(subject.model, kept)


def _by_layer(factors: Mapping[str, object]) -> Arrays:
    """Return stacked factors by PEFT's names, without what these begin with."""
    return {
        f"model.layers.{layer}.{name.removeprefix('layers.')}.weight": own
        for name, values in factors.items()
        if ".lora_" in name
        for layer, own in enumerate(np.asarray(values))
    }
