"""The reference's operators as data: the bits of plain expressions, and of the model's taps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from witnesses import LINEAR, LLAMA3, small

from parity.inputs import Inputs
from parity.scenarios import scenario
from parity.subjects.torch.arrays import to_torch
from parity.subjects.torch_reference.operands import SETUP, Operands, call_operands, program_of
from parity.subjects.torch_reference.program import (
    NORM,
    PROGRAM,
    Step,
    bind,
    operand_names,
    run_program,
)
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import LAYER_TAPS, split_name

CHECKPOINT = small()
LAYERS = CHECKPOINT.config.num_hidden_layers
DTYPES, VARIANTS = ("f64", "f32", "bf16"), ("eager", "reordered", "laned")


def inputs_of(name: str = "left_padded") -> Inputs:
    return scenario(name, lambda text: list(text.encode()), CHECKPOINT.config, length=13)


class Plain(TorchReference):
    """The operators once more, as one would write them by hand."""

    def embed(self, tokens: Tensor) -> Tensor:
        return self.weight("model.embed_tokens.weight")[tokens].to(self.compute)

    def inv_freq(self) -> Tensor:
        c, scaling = self.config, self.config.rope_scaling
        pair = torch.arange(c.head_dim // 2, dtype=torch.float64)
        if self.backwards:
            freq = torch.exp(-math.log(c.rope_theta) * 2 * pair / c.head_dim)
        else:
            freq = c.rope_theta ** (-2 * pair / c.head_dim)
        if scaling is None:
            return freq
        if scaling.kind == "linear":
            return freq / scaling.factor
        context, low, high = (
            scaling.original_max_position_embeddings,
            scaling.low_freq_factor,
            scaling.high_freq_factor,
        )
        assert context is not None and low is not None and high is not None
        wavelength = 2 * math.pi / freq
        blend = (context / wavelength - low) / (high - low)
        blended = (1 - blend) * freq / scaling.factor + blend * freq
        stretched = torch.where(wavelength > context / low, freq / scaling.factor, blended)
        return torch.where(wavelength < context / high, freq, stretched)

    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[:, :, None].to(self.wide) * freq
        return angle.cos(), angle.sin()

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.to(cos.dtype).chunk(2, dim=-1)
        cos, sin = cos[:, :, None], sin[:, :, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.to(self.wide)
        square = wide.square().flip(-1) if self.backwards else wide.square()
        rms = (square.mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return (wide / rms).to(x.dtype) * self.weight(f"{name}.weight").to(x.dtype)

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weight(f"{name}.weight").to(self.compute).to(x.dtype)
        return self.matmul(x, weight.T)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = q.to(self.wide), k.to(self.wide)
        return self.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * self.scale()

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        visible = mask[:, None]
        scores = scores.masked_fill(~visible, -math.inf)
        probs = scores.flip(-1).softmax(-1).flip(-1) if self.backwards else scores.softmax(-1)
        return probs.masked_fill(~visible.any(-1, keepdim=True), 0)

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


def _stages(reference: TorchReference, inputs: Inputs, how: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    if how == "decode":
        run = reference.start_decode(inputs, [8, 4, 1])
    else:
        run = getattr(reference, {"free": "start", "grad": "start_grad"}[how])(inputs)
    for number in range((LAYERS + 2) * (3 if how == "decode" else 1)):
        found |= {f"{number}.{name}": np.array(value) for name, value in run.step().items()}
    return found


@pytest.mark.parametrize("how", ["free", "decode", "grad"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_programs_give_the_bits_of_plain_expressions(dtype: str, variant: Any, how: str) -> None:
    inputs = inputs_of()
    ours, plain = (
        _stages(kind(CHECKPOINT, dtype=dtype, variant=variant), inputs, how)
        for kind in (TorchReference, Plain)
    )
    assert ours.keys() == plain.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, plain[name], err_msg=name)


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["none", "linear", "llama3"])
@pytest.mark.parametrize("variant", ["eager", "reordered"])
def test_tables_of_frequencies_are_the_same_bits(scaling: Any, variant: Any) -> None:
    checkpoint = small(scaling=scaling)
    ours, plain = (kind(checkpoint, variant=variant).inv_freq() for kind in (TorchReference, Plain))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_tap_is_its_program_of_the_taps_before(dtype: str) -> None:
    """One interpreter serves trials and the reference: fed with taps, a program gives the tap."""
    inputs = inputs_of()
    reference = TorchReference(CHECKPOINT, dtype=dtype)
    run = reference.start(inputs)
    call = call_operands(inputs, 0, inputs.tokens.shape[1])
    compared, before = 0, dict[str, Tensor]()
    for _ in range(LAYERS + 2):
        stage = run.step()
        seen = call | before
        for name, value in stage.items():
            kind, layer = split_name(name)
            tap = kind.removeprefix("layers.")
            if tap in SETUP:
                call[tap] = to_torch(np.array(value))
            seen[tap] = to_torch(np.array(value))
            seen |= {new: seen[old] for new, old in _HELD.items() if old in seen}
            program = program_of(tap, CHECKPOINT.config)
            if program is None:
                assert tap == "positions"
                continue
            made = run_program(program, Operands(reference, tap, layer, seen), reference)
            assert torch.equal(made.to(seen[tap].dtype), seen[tap]), name
            compared += 1
        last = seen.get("output", seen.get("embed"))
        before = {} if last is None else {"output": last, "handed_on": last}
    assert compared == 3 + LAYERS * len(LAYER_TAPS) + 2


_HELD = {"keys": "k_rope", "values": "v_proj"}


def test_programs_name_what_they_read() -> None:
    assert operand_names(PROGRAM["input_layernorm"]) == ("input", "eps", "weight")
    assert operand_names(bind(NORM, x="y", eps="z")) == ("y", "z", "weight")
    for program in PROGRAM.values():
        names = [step.name for step in program]
        assert len({*names, *operand_names(program)}) == len(names) + len(operand_names(program))
        assert all(isinstance(step, Step) and hash(step) is not None for step in program)


def test_an_operand_that_is_not_given_is_named() -> None:
    with pytest.raises(KeyError, match="eps"):
        run_program(NORM, {"x": torch.ones(2, 3)}, TorchReference(CHECKPOINT))
