"""Orders of casts that are no errors: said in notes, and never a divergence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_llamas as llamas
import jax
import pytest
import torch
from torch import Tensor
from witnesses import small

import parity
from jaxllama.checkpoint import Checkpoint, load_model
from parity.diagnose.casts import cast_notes
from parity.inputs import Inputs
from parity.scenarios import scenario
from parity.subjects import from_torch
from parity.subjects.base import Subject
from parity.subjects.jaxllama.subject import JaxLlama, weights_dtype
from parity.subjects.torch_reference.subject import TorchReference

ROOT = Path(__file__).parents[3]
CHECKPOINT = small(scaling=None, dtype="bfloat16")


def inputs(name: str = "left_padded", checkpoint: Checkpoint = CHECKPOINT) -> Inputs:
    return scenario(name, checkpoint.tokenizer().encode, checkpoint.config, length=17)


class Otherwise(TorchReference):
    """The reference in bfloat16 with another method."""

    def __init__(self, **methods: Callable[..., Tensor]) -> None:
        super().__init__(CHECKPOINT, dtype="bf16")
        for name, method in methods.items():
            setattr(self, name, method.__get__(self))


def early_norm(self: TorchReference, x: Tensor, name: str) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
    return (normed * self.weight(f"{name}.weight").float()).to(x.dtype)


def rounded_products(self: TorchReference, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    a, b, c, d = (
        (half * table).to(x.dtype)
        for half, table in ((first, cos), (second, sin), (second, cos), (first, sin))
    )
    return torch.cat([a - b, c + d], dim=-1)


def like_transformers(self: TorchReference, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rounded_products(self, x, cos.to(x.dtype), sin.to(x.dtype))


def wide_silu(self: TorchReference, gate: Tensor, up: Tensor) -> Tensor:
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


class WideWeights(Otherwise):
    """Multiplies v by the weights of softmax as they are, in float32."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Any) -> Tensor:
        heads = self.kv_head_of_query()
        probs = tap("attn_scores", self.scores(q, k[:, :, heads]))
        probs = tap("attn_probs", self.probs(probs, mask))
        context = probs @ v[:, :, heads].permute(0, 2, 1, 3).float()
        return tap("attn_context", context.permute(0, 2, 1, 3).to(v.dtype))


FOUND = {
    "input_layernorm": (Otherwise(rms_norm=early_norm), "the weight before the cast"),
    "q_rope": (Otherwise(rotate=rounded_products), "rounding the products before they are added"),
    "mlp_act": (Otherwise(activation=wide_silu), "keeping silu in float32"),
    "attn_context": (WideWeights(), "the weights of softmax in float32"),
}


@pytest.mark.parametrize("tap", FOUND)
def test_another_order_of_casts_is_noted_and_explained(tap: str) -> None:
    subject, said = FOUND[tap]
    notes = cast_notes(subject, inputs(), CHECKPOINT)
    (note,) = [note for note in notes if note.startswith(f"layers.*.{tap} (bf16): ")]
    assert said in note and "explains it: " in note
    assert float(note.split("explains it: ")[1].rstrip("%")) > 99
    alike = {"input_layernorm": 3, "q_rope": 2}.get(tap, 1)  # norms and rotations there are
    assert len(notes) == alike and not any("no order" in note for note in notes)


def test_one_layer_that_casts_otherwise_is_named() -> None:
    def early_in_one(self: TorchReference, x: Tensor, name: str) -> Tensor:
        norm = early_norm if name == "model.layers.1.input_layernorm" else TorchReference.rms_norm
        return norm(self, x, name)

    (note,) = cast_notes(Otherwise(rms_norm=early_in_one), inputs(), CHECKPOINT)
    assert note.startswith("input_layernorm in layer 1 (bf16): ") and "before the cast" in note


def test_a_note_is_no_divergence() -> None:
    subject, said = FOUND["input_layernorm"]
    result = parity.run(CHECKPOINT, subject=subject, scenarios="left_padded", modes="isolated")
    assert (result.verdict, result.exit_code) == ("equal", 0)
    assert sum(said in note for note in result.notes) == 3
    assert any(said in note for note in result.to_dict()["notes"])


def test_what_no_known_order_makes_is_said_to_be_that() -> None:
    def dithered(self: TorchReference, gate: Tensor, up: Tensor) -> Tensor:
        value = TorchReference.activation(self, gate, up).float()
        return (value * (1 + 2.0**-8 * (torch.arange(value.shape[-1]) % 3 - 1))).to(gate.dtype)

    (note,) = cast_notes(Otherwise(activation=dithered), inputs(), CHECKPOINT)
    assert note.endswith("no order of casts that is known explains it")


def honest(kind: str) -> Subject:
    if kind == "transformers":
        model = llamas.hf_model(CHECKPOINT).to(torch.bfloat16)
        return from_torch(
            model,
            names=llamas.HF_NAMES,
            call=llamas.hf_call,
            config=CHECKPOINT.config,
            dtype="bf16",
        )
    if kind == "like transformers":
        return Otherwise(rotate=like_transformers)
    if kind == "jaxllama":
        stored = weights_dtype(CHECKPOINT)
        return JaxLlama(load_model(CHECKPOINT, dtype="float32", param_dtype=stored), "bf16")
    return TorchReference(CHECKPOINT, dtype="bf16", variant=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind", ["jaxllama", "transformers", "like transformers", "reordered", "laned", "doubled"]
)
def test_honest_implementations_have_no_notes(kind: str) -> None:
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        assert cast_notes(honest(kind), inputs(), CHECKPOINT) == []


@pytest.mark.parametrize("name", ["long_positions", "mixed_lengths"])
def test_where_bits_say_nothing_nothing_is_said(name: str) -> None:
    noted = cast_notes(Otherwise(rotate=like_transformers), inputs(name), CHECKPOINT)
    assert noted == []
    late = cast_notes(FOUND["q_rope"][0], inputs(name), CHECKPOINT)
    assert bool(late) is (name == "mixed_lengths")


def test_what_cannot_be_asked_is_not_judged() -> None:
    for field, value in (("can_force", False), ("dtype", "f32")):
        subject = Otherwise(rms_norm=early_norm)
        setattr(subject, field, value)
        assert cast_notes(subject, inputs(), CHECKPOINT) == []
    chained = Otherwise(rms_norm=early_norm)
    chained.absent = frozenset({"layers.input", "layers.output"})
    noted = cast_notes(chained, inputs(), CHECKPOINT)
    # Layer 0 works on an embedding of its own.
    assert [note.split(" (")[0] for note in noted] == ["post_attention_layernorm in layer 1 to 2"]


# On a machine with narrower vectors.
NARROWER = """
import test_casts as here, jax
with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    for kind in ("jaxllama", "transformers", "reordered"):
        print(here.cast_notes(here.honest(kind), here.inputs(), here.CHECKPOINT))
print(len(here.cast_notes(here.FOUND["input_layernorm"][0], here.inputs(), here.CHECKPOINT)))
"""


def test_so_it_is_on_narrower_processors() -> None:
    places = [ROOT, ROOT / "tests/support", Path(__file__).parent]
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": "default",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        "PYTHONPATH": os.pathsep.join(map(str, places)),
    }
    done = subprocess.run(
        [sys.executable, "-c", NARROWER], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:4] == ["[]", "[]", "[]", "3"], done.stderr[-2000:]
