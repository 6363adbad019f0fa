"""Published Llamas: what an adapter says of itself, and that it asks for names that there are."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import foreign_llamas as llamas
import numpy as np
import peer_stubs
import pytest
import torch
from transformers import LlamaForCausalLM
from witnesses import LAYERS, inputs_for, small, steps

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.subjects import from_nnx
from parity.subjects.adapters import peers
from parity.subjects.base import Subject, require_gradients
from parity.subjects.select import FromCheckpoint
from parity.subjects.takes import takes_of
from parity.taps import expected_names, gradient_names, split_name

ROOT = Path(__file__).parents[3]
FOLDER = Path(peers.__path__[0])
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
CHECKPOINT = small()
STUBS = ("litgpt", "torchtune", "keras_hub", "skyrl")
# What a stub calls otherwise than its release does, and the name that the adapter then misses.
RENAMED = {
    "litgpt": "norm_1",
    "torchtune": "sa_norm",
    "keras_hub": "_self_attention_layernorm",
    "skyrl": "input_layernorm",
}


@pytest.fixture(scope="module")
def lines_of() -> Iterator[Callable[[str], int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "field"))
        yield importlib.import_module("adapter_lines").lines_of
    sys.modules.pop("adapter_lines", None)


def adapter(module: str) -> Any:
    return importlib.import_module(f"{peers.__name__}.{module}")


@pytest.mark.parametrize("module", MODULES)
def test_an_adapter_is_small_and_says_what_it_is_for(
    module: str, lines_of: Callable[[str], int]
) -> None:
    one = adapter(module)
    name = module.replace("_", "-")
    assert lines_of((FOLDER / f"{module}.py").read_text()) < 60
    assert "Cannot show: " in one.__doc__
    assert re.fullmatch(r"[\w-]+==[\d.]+", one.REQUIREMENT)
    assert ENTRIES["parity.subjects"][name] == f"{peers.__name__}.{module}:subject"
    listed = (ROOT / "scripts" / "field" / f"{name}.txt").read_text()
    assert one.REQUIREMENT in listed or "Among `.[parity]`" in listed


def test_lines_of_code_are_neither_blank_nor_prose(lines_of: Callable[[str], int]) -> None:
    source = '"""What."""\n\n# why\nx = 1\n\n\ndef f():\n    "What."\n    return x\n'
    assert lines_of(source) == 3


def built(module: str, patch: pytest.MonkeyPatch, **options: Any) -> tuple[Subject, list[Any]]:
    given = getattr(peer_stubs, module)(patch, **options)
    return adapter(module).subject(CHECKPOINT, "f32"), given


@pytest.mark.parametrize("module", STUBS)
def test_an_adapter_finds_its_peers_names(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, given = built(module, monkeypatch)
    assert subject.name == module.replace("_", "-")
    assert given, "its loader was not called"


@pytest.mark.parametrize("module", STUBS)
def test_a_name_that_a_release_has_changed_is_missed(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A strict load would say so before, of names that both sides of the stub share.
    with pytest.raises(InputError, match=RENAMED[module]):
        built(module, monkeypatch, norm="renamed")


@pytest.mark.parametrize("module", STUBS)
def test_a_loader_that_a_release_has_moved_is_missed(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name = {
        "litgpt": ("litgpt.scripts.convert_hf_checkpoint", "copy_weights_hf_llama"),
        "torchtune": ("torchtune.models.convert_weights", "hf_to_tune"),
        "keras_hub": ("keras_hub.models", "Llama3CausalLM"),
        "skyrl": ("tx.utils.models", "load_safetensors"),
    }[module]
    getattr(peer_stubs, module)(monkeypatch)
    monkeypatch.delattr(f"{home}.{name}")
    with pytest.raises((ImportError, AttributeError), match=name):
        adapter(module).subject(CHECKPOINT, "f32")


@pytest.mark.parametrize("module", ["litgpt", "torchtune", "keras_hub"])
def test_a_cache_goes_from_call_to_call(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    getattr(peer_stubs, module)(monkeypatch)
    one, made = adapter(module), []
    create = one.from_torch if hasattr(one, "from_torch") else one.from_nnx
    monkeypatch.setattr(
        one,
        create.__name__,
        lambda model, **options: made.append(model) or create(model, **options),
    )
    one.subject(CHECKPOINT, "f32")
    inputs = inputs_for(CHECKPOINT, "right_padded", 7)
    result, cache = one.decode(made[0], inputs, 0, 5, None)
    _, again = one.decode(made[0], inputs, 5, 7, cache)
    shown = np.asarray(result[0] if isinstance(result, tuple) else result)
    assert np.array_equal(shown, inputs.tokens[:, :5])
    assert again is cache or again == cache


def test_transformers_is_equal_forwards_and_through_its_cache() -> None:
    result = parity.run(
        CHECKPOINT, subject=FromCheckpoint(adapter("transformers").subject), dtypes="f32",
        scenarios="left_padded", length=8, modes="free,decode",
    )  # fmt: skip
    assert result.verdict == "equal"
    assert set(result.absent) == {"rope.inv_freq", "mask"}


def shown(subject: Subject, name: str = "right_padded") -> set[str]:
    """Return what a forward pass shows, which must be all that is not declared absent."""
    values = steps(subject.start(inputs_for(CHECKPOINT, name, 8)))
    wanted = {tap for tap in expected_names(LAYERS) if split_name(tap)[0] not in subject.absent}
    assert set(values) == wanted
    assert all(np.isfinite(value).all() for value in values.values())
    return {split_name(tap)[0] for tap in values}


def test_torchax_is_transformers_moved_to_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    peer_stubs.installed(monkeypatch, "torchax", default_env=nullcontext)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda model, device: moved.append(device) or model)
    found = shown(adapter("torchax").subject(CHECKPOINT, "f32"))
    assert moved == ["jax"]
    assert "layers.attn_probs" in found and "layers.attn_scores" not in found


def test_a_compiled_model_shows_what_goes_into_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    subject = adapter("transformers_compiled").subject(CHECKPOINT, "f32")
    assert shown(subject) == {"layers.input", "norm", "logits"}
    assert len(compiled) == 1
    run = require_gradients(subject).start_grad(inputs_for(CHECKPOINT, "right_padded", 8))
    gradients = steps(run)
    assert gradients["loss"] > 0
    assert set(gradients) <= set(gradient_names(LAYERS, tied=False))


@pytest.mark.parametrize("module", ["keras_hub", "skyrl", "litgpt"])
def test_scenarios_that_a_peer_has_no_mask_for_are_declared(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    getattr(peer_stubs, module)(monkeypatch)
    one = adapter(module)
    given = [inputs_for(CHECKPOINT, name, 7) for name in ("packed", "causal")]
    kept, refused = takes_of(one.subject(CHECKPOINT, "f32")).sort(given)
    assert [inputs.name for inputs in kept] == ["causal"] and {*refused} == {"packed"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tunix_is_loaded_by_its_own_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    llamas.tunix()  # its front page imports training frameworks, which are not here
    one, create = adapter("tunix"), from_nnx

    def in_plain_jax(model: Any, *, call: Any, **options: Any) -> Subject:
        def called(model: Any, inputs: Inputs) -> Any:
            with llamas.plain_jax():
                return call(model, inputs)

        embedding = model.embedder.input_embedding[...]
        assert np.array_equal(embedding, CHECKPOINT.read("model.embed_tokens.weight"))
        return create(model, call=called, **options)

    monkeypatch.setattr(one, "from_nnx", in_plain_jax)
    with llamas.plain_jax():
        found = shown(one.subject(CHECKPOINT, "f32"))
    assert "layers.q_rope" in found and "layers.attn_scores" in found
