"""Layouts and calls as other people's code has them: declared they are equal, undeclared found."""

from __future__ import annotations

import math
from typing import Any

import foreign_llamas as llamas
import numpy as np
import pytest
from foreign_subjects import CHECKPOINT, CONFIG, first
from transformers import LlamaForCausalLM
from witnesses import LAYERS

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.result import Result
from parity.subjects import Calls, Tap, from_callable, from_torch
from parity.subjects.base import Subject
from parity.subjects.torch_reference.subject import TorchReference

ATTENTION = "model.layers.{i}.self_attn"
FOLDED = math.sqrt(CONFIG.head_dim)


def judged(subject: Subject, **options: Any) -> Result:
    settings: dict[str, Any] = {"scenarios": "packed", "length": 11, "seconds": 0.1}
    return parity.run(CHECKPOINT, subject=subject, **(settings | options))


@pytest.fixture(scope="module")
def folded() -> LlamaForCausalLM:
    """Return transformers' model with the scale of scores in the weights of q."""
    model = llamas.hf_model(CHECKPOINT)
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.0
        layer.self_attn.q_proj.weight.data /= FOLDED
    return model


def of_folded(model: LlamaForCausalLM, scale: float) -> Subject:
    names = llamas.HF_NAMES | {
        f"{ATTENTION}.q_proj": Tap("layers.{i}.q_proj", axes="BT(NH)", scale=scale),
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb()": [
            Tap("layers.{i}.q_rope", axes="BNTH", item=0, scale=scale),
            Tap("layers.{i}.k_rope", axes="BKTH", item=1),
        ],
    }
    weight = Tap("model.layers.{i}.self_attn.q_proj.weight", scale=scale)
    parameters: Any = llamas.HF_PARAMETERS | {f"{ATTENTION}.q_proj.weight": weight}
    return from_torch(model, names=names, call=llamas.hf_call, config=CONFIG, parameters=parameters)


def test_a_scale_that_is_folded_in_is_declared(folded: LlamaForCausalLM) -> None:
    # Values on the way, what is put in their places, and gradients of both kinds.
    result = judged(of_folded(folded, FOLDED), modes="free,isolated,grad")
    assert result.verdict == "equal"
    named = {row.tap for row in result.rows if row.mode == "grad"}
    assert {"grad.layers.0.q_rope", "grad.model.layers.0.self_attn.q_proj.weight"} <= named


@pytest.mark.parametrize("scale", [1.0, -FOLDED, 1.0001 * FOLDED])
def test_another_scale_is_found(folded: LlamaForCausalLM, scale: float) -> None:
    result = judged(of_folded(folded, scale), modes="free")
    assert first(result).row.tap == "layers.0.q_proj"


def interleaved(axes: str) -> Subject:
    """Return a subject whose pairs lie side by side, declared as `axes`."""

    def shown(inputs: Inputs) -> dict[str, Any]:
        run = TorchReference(CHECKPOINT, dtype="f32").start(inputs)
        taps: dict[str, Any] = {}
        for _ in range(LAYERS + 2):
            taps |= run.step()
        halves = {i: taps[f"layers.{i}.q_rope"] for i in range(LAYERS)}
        pairs = {
            f"q{i}": x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
            for i, x in halves.items()
        }
        return pairs | {"scores": taps["logits"]}

    names = {"q{i}": Tap("layers.{i}.q_rope", axes=axes), "scores": "logits"}
    return from_callable(shown, names=names, config=CONFIG)


def test_pairs_side_by_side_are_declared() -> None:
    assert judged(interleaved("BTN(R2)"), modes="free").verdict == "equal"
    assert first(judged(interleaved("BTN(2R)"), modes="free")).row.tap == "layers.0.q_rope"


def test_a_call_is_left_out() -> None:
    place = "transformers.models.llama.modeling_llama.rotate_half():input"
    names: dict[str, Any] = {"lm_head": "logits"}
    # It is called with q, then with k.
    right = names | {place: Calls(None, Tap("layers.{i}.k_proj", axes="BKTH"))}
    wrong = names | {place: Calls(Tap("layers.{i}.k_proj", axes="BKTH"), None)}
    model = llamas.hf_model(CHECKPOINT)

    def subject(names: dict[str, Any]) -> Subject:
        return from_torch(model, names=names, call=llamas.hf_call, config=CONFIG)

    result = judged(subject(right), modes="free")
    assert result.verdict == "equal" and result.compared == LAYERS + 1
    assert "shape" in first(judged(subject(wrong), modes="free")).row.problems[0]


@pytest.mark.parametrize("scale", [0, math.nan, "2"])
def test_a_scale_is_a_number(scale: Any) -> None:
    names = {"output": Tap("logits", scale=scale)}
    with pytest.raises(InputError, match="expected a number, and not 0"):
        from_callable(lambda _: {}, names=names, config=CONFIG)


@pytest.mark.parametrize("axes", ["BTNR", "BTN(R2)H", "BTN22", "BT(NH2)"])
def test_pairs_are_both_or_none(axes: str) -> None:
    with pytest.raises(InputError, match="do not hold those of 'BTNH'"):
        from_callable(lambda _: {}, names={"q": Tap("layers.{i}.q_rope", axes)}, config=CONFIG)


def test_a_narrow_array_is_scaled_with_one_rounding() -> None:
    from ml_dtypes import bfloat16

    from parity.subjects.adapters.layouts import canonical

    array = np.linspace(-3, 3, 40, dtype=np.float32).astype(bfloat16)
    scaled = canonical(array, Tap("logits", scale=3.1), {})
    assert scaled.dtype == bfloat16
    assert np.array_equal(scaled, (array.astype(np.float64) * 3.1).astype(bfloat16))
