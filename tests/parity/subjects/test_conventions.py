"""Modules whose parts are named as in known libraries, mapped without a map."""

from __future__ import annotations

from typing import Any

import foreign_llamas as llamas
import pytest
import torch
from foreign_subjects import CHECKPOINT, CONFIG, first
from torch import nn
from witnesses import LAYERS

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.result import Result
from parity.subjects import Tap, auto_names, from_nnx, from_torch
from parity.subjects.adapters.conventions import CONVENTIONS
from parity.subjects.base import Subject
from parity.subjects.torch.arrays import to_torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tunix")
SETTINGS: dict[str, Any] = {"scenarios": "packed", "length": 9, "modes": "free", "seconds": 0.1}
SETUP = {"rope.inv_freq", "positions", "mask", "cache.k", "cache.v"}


def run(subject: Subject, **options: Any) -> Result:
    return parity.run(CHECKPOINT, subject=subject, **(SETTINGS | options))


def renamed(convention: str) -> tuple[nn.Module, Any]:
    """Return transformers' Llama with its parts called otherwise, and what runs it."""
    (names,) = (one.parts for one in CONVENTIONS if one.name == convention)
    inner = llamas.hf_model(CHECKPOINT)

    class Block(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            own = {
                "input_layernorm": layer.input_layernorm,
                "post_attention_layernorm": layer.post_attention_layernorm,
                **{f"{x}_proj": getattr(layer.self_attn, f"{x}_proj") for x in "qkvo"},
                **{f"{x}_proj": getattr(layer.mlp, f"{x}_proj") for x in ("gate", "up", "down")},
            }
            for part, module in own.items():
                place(self, names[part][0], module)
            self.layer = [layer]  # no part of it

        def forward(self, hidden: Any, **rest: Any) -> Any:
            return None, self.layer[0](hidden, **rest)

    class Whole(nn.Module):
        pass

    whole = Whole()
    place(whole, names["embed"][0], inner.model.embed_tokens)
    place(whole, names["norm"][0], inner.model.norm)
    place(whole, names["head"][0], inner.lm_head)
    blocks = nn.ModuleList(Block(layer) for layer in inner.model.layers)
    place(whole, names["layer"][0].removesuffix(".{i}"), blocks)

    def call(whole: Any, inputs: Inputs) -> Any:
        model = inner.model
        hidden = model.embed_tokens(to_torch(inputs.tokens).long())
        positions = to_torch(inputs.positions).long()
        mask = torch.zeros(inputs.mask.shape)[:, None]
        mask = mask.masked_fill(to_torch(~inputs.mask)[:, None], torch.finfo(torch.float32).min)
        rotation = model.rotary_emb(hidden, position_ids=positions)
        for block in blocks:
            _, hidden = block(hidden, attention_mask=mask, position_embeddings=rotation)
        return inner.lm_head(model.norm(hidden))

    return whole, call


def place(module: nn.Module, path: str, part: nn.Module) -> None:
    head, _, last = path.rpartition(".")
    for name in filter(None, head.split(".")):
        if name not in dict(module.named_children()):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    module.add_module(last, part)


def test_transformers_needs_no_map() -> None:
    model = llamas.hf_model(CHECKPOINT)
    subject = from_torch(model, call=llamas.hf_call, config=CONFIG)
    result = run(subject, modes="free,isolated")
    assert result.verdict == "equal" and set(result.absent) >= SETUP
    forward = {row.tap for row in result.rows if row.mode == "free"}
    assert len(forward) == 57
    (said,) = [note for note in result.notes if note.startswith("names are Hugging Face's")]
    assert said.endswith("not mapped: nothing")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] *= -2
    assert first(run(subject)).row.tap == "layers.1.up_proj"


def test_an_nnx_module_of_such_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = llamas.tunix().apply_rope
    monkeypatch.setattr(rotate, "__defaults__", (int(CONFIG.rope_theta),))
    model = llamas.tunix_model(CHECKPOINT)
    subject = from_nnx(model, call=llamas.tunix_call, config=CONFIG)
    result = run(subject)
    assert result.verdict == "equal"
    # Heads are apart in its kernels, and a layer returns its cache, too.
    assert {"layers.0.q_proj", "layers.0.attn_context", "layers.0.output"} <= {
        row.tap for row in result.rows
    }
    (said,) = [note for note in result.notes if note.startswith("names are")]
    assert "embed (model.embed_tokens or embed_tokens is not there)" in said
    assert "q_rope, k_rope, attn_scores, attn_probs (functions" in said


@pytest.mark.parametrize("convention", ["Meta", "nanoGPT", "llama-2-jax"])
def test_names_of_other_libraries(convention: str) -> None:
    model, call = renamed(convention)
    subject = from_torch(model, names="auto", call=call, config=CONFIG)
    result = run(subject)
    assert result.verdict == "equal" and not result.unmatched
    shown = {row.tap for row in result.rows}
    assert {"embed", "layers.1.v_proj", "layers.1.mlp_act", "layers.2.output", "logits"} <= shown
    # Where names do not tell how pairs lie, nothing is guessed.
    assert ("layers.1.q_proj" in shown) == (convention == "llama-2-jax")
    (said,) = [note for note in result.notes if note.startswith(f"names are {convention}'s")]
    assert ("how pairs lie" in said) == (convention != "llama-2-jax")


def test_a_map_can_be_added_to() -> None:
    model, call = renamed("Meta")
    names = auto_names(model, CONFIG) | {
        "layers.{i}.attention.wq": Tap("layers.{i}.q_proj", axes="BT(NH)")
    }
    result = run(from_torch(model, names=names, call=call, config=CONFIG))
    assert result.verdict == "equal" and "layers.1.q_proj" in {row.tap for row in result.rows}
    wrong = names | {"layers.{i}.attention.wq": Tap("layers.{i}.q_proj", axes="BT(NR2)")}
    result = run(from_torch(model, names=wrong, call=call, config=CONFIG))
    assert first(result).row.tap == "layers.0.q_proj"


def test_what_is_named_as_none_of_them() -> None:
    with pytest.raises(InputError, match=r"is named as none of Hugging Face, Meta.*give names="):
        from_torch(nn.Linear(2, 2), call=lambda model, i: None, config=CONFIG)
    few = llamas.hf_model(CHECKPOINT)
    del few.model.layers[LAYERS - 1]
    with pytest.raises(InputError, match="nearest is Hugging Face"):
        from_torch(few, call=lambda model, i: None, config=CONFIG)


@pytest.mark.ill_typed
def test_another_word() -> None:
    bad: Any = "automatic"
    with pytest.raises(InputError, match="expected a map of names, or 'auto'"):
        from_torch(llamas.hf_model(CHECKPOINT), names=bad, call=llamas.hf_call, config=CONFIG)
