"""Adapters that PEFT makes, merged here and by PEFT: its rules are its own."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import Phase, assume, event, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.checkpoint.lora import merge_lora
from jaxllama.checkpoint.lora.matching import by_pattern
from jaxllama.checkpoint.lora.settings import read_settings
from jaxllama.errors import CheckpointError

MODULES = [
    *(f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1, 11) for p in "qkvo"),
    *(f"model.layers.{i}.mlp.{p}_proj" for i in (0, 1, 11) for p in ("gate", "up", "down")),
    "model.layers.1.input_layernorm",
    "model.embed_tokens",
    "lm_head",
]
ENDS = ["q_proj", "v_proj", "proj", "self_attn.k_proj", "layers.1.mlp.up_proj", "down_proj"]
ENDS += ["model.layers.0.self_attn.q_proj", "lm_head", "1.mlp.gate_proj"]
PATTERNS = [
    "q_proj",
    r".*\.layers\.1\..*(q_proj|k_proj)$",
    r"layers\.\d+\.mlp\.up_proj",
    "model.layers.1.self_attn.v_proj",
    r"(q|v)_proj",
    "_proj",
    r"^lm_head$",
    ".*",
    r"model\.layers\.1\.self_attn",
    r"layers.1.*",
    "^model.layers.0.mlp.down_proj",
]
WHOLE = [r".*\.(q|v)_proj", r"model\.layers\.[01]\.mlp\..*_proj", "q_proj", r".*_proj|lm_head"]
WHOLE += [r".*\.1\..*proj", r"model\.layers\.1\.self_attn\..*"]


def names(whole: list[str]) -> st.SearchStrategy[Any]:
    listed = st.lists(st.sampled_from(ENDS), min_size=1, max_size=4, unique=True)
    return listed | st.sampled_from(whole)


def numbers_by_pattern(values: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, int]]:
    return st.dictionaries(st.sampled_from(PATTERNS), values, max_size=3)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an adapter_config.json whose fields are each of PEFT's forms."""
    made: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.integers(1, 32)),
        "target_modules": draw(names([*WHOLE, "all-linear"])),
        "exclude_modules": draw(st.none() | st.none() | names(WHOLE)),
        "rank_pattern": draw(numbers_by_pattern(st.integers(1, 4))),
        "alpha_pattern": draw(numbers_by_pattern(st.integers(1, 64))),
        "use_rslora": draw(st.booleans()),
        "fan_in_fan_out": draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "all", "lora_only"])),
        "init_lora_weights": draw(st.sampled_from(["gaussian", True])),
        "modules_to_save": draw(st.sampled_from([None, None, ["lm_head"], ["model.norm"]])),
    }
    if isinstance(made["target_modules"], list):
        layers = st.none() | st.integers(0, 1) | st.lists(st.integers(0, 2), max_size=2)
        made["layers_to_transform"] = draw(layers)
        if made["layers_to_transform"] is not None:
            made["layers_pattern"] = draw(st.sampled_from([None, "layers", ["h", "layers"]]))
    return made


@given(configs())
@settings(max_examples=200)
def test_modules_ranks_and_alphas_are_found_as_by_peft(made: dict[str, Any]) -> None:
    made = {**made, "init_lora_weights": True}
    if made["target_modules"] == "all-linear":
        made["target_modules"] = "q_proj"  # PEFT looks at the model first; see the test below
    config = quiet(made)
    ours = read_settings(made, "adapter_config.json")
    for module in MODULES:
        assert ours.targets.has(module) == bool(check_target_module_exists(config, module))
        for pattern in ("rank_pattern", "alpha_pattern"):
            expected = made[pattern].get(get_pattern_key(made[pattern].keys(), module), -1)
            assert by_pattern(made[pattern], module, -1) == expected


def quiet(made: dict[str, Any]) -> peft.LoraConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.LoraConfig(**{k: v for k, v in made.items() if k != "peft_type"})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint]:
    """Return a small model of transformers' and its checkpoint."""
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=40,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(config).to(torch.float32)
    place = tmp_path_factory.mktemp("base")
    model.save_pretrained(place)
    return model, open_checkpoint(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


def save(model: Any, made: dict[str, Any], adapter: Path) -> None:
    """Write what PEFT makes of a configuration; raises ValueError where it refuses it."""
    config = quiet(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(adapter)


def theirs(model: Any, adapter: Path) -> dict[str, np.ndarray]:
    """Return the weights that PEFT's merge of an adapter gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), adapter)
        merged = loaded.merge_and_unload()
    return {name: value.detach().numpy() for name, value in merged.named_parameters()}


def write(model: Any, made: dict[str, Any], adapter: Path, odd: str, seed: int) -> int:
    """Write an adapter with factors of what PEFT says that it is for; return how many tensors."""
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps(made))
    config, generator = quiet(made), torch.Generator().manual_seed(seed)
    if config.target_modules == "all-linear":  # PEFT looks at the model, and leaves out its head
        config.target_modules = {name for name in MODULES if name.endswith("_proj")}
    stored = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        stray = odd == "stray" and name.endswith("0.mlp.down_proj")
        if not stray and not check_target_module_exists(config, name):
            continue
        if odd == "missing" and name.endswith("1.self_attn.v_proj"):
            continue
        key = get_pattern_key(config.rank_pattern.keys(), name)
        rank, at = config.rank_pattern.get(key, config.r), f"base_model.model.{name}"
        stored[f"{at}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator)
        stored[f"{at}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator)
    for name in made["modules_to_save"] or ():
        weight = model.get_submodule(name).weight
        stored[f"base_model.model.{name}.weight"] = torch.randn(weight.shape, generator=generator)
    safetensors.torch.save_file(stored, adapter / "adapter_model.safetensors")
    return len(stored)


@given(configs(), st.sampled_from(["", "stray", "missing"]), st.integers(0, 99))
@settings(max_examples=200, phases=[Phase.generate])
def test_merged_weights_are_those_of_peft(
    base: Any, folder: Path, made: dict[str, Any], odd: str, seed: int
) -> None:
    model, checkpoint = base
    assume(write(model, made, folder, odd, seed))
    try:
        expected = theirs(model, folder)
    except (ValueError, RuntimeError) as error:
        event(f"PEFT refuses: {str(error)[:20]}")
        with pytest.raises(CheckpointError):
            merge_lora(checkpoint, folder)
        return
    ours = merge_lora(checkpoint, folder)
    assert expected.keys() == ours.tensors.keys()
    for name, value in expected.items():
        assert np.allclose(ours.read(name), value, rtol=1e-5, atol=1e-5), name
    event(f"{len(ours.notes)} notes")


def test_what_peft_finds_nothing_for_is_refused(base: Any, tmp_path: Path) -> None:
    model, checkpoint = base
    save(model, {"target_modules": ["q_proj"]}, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["wq"]}))
    with pytest.raises(ValueError, match="not found in the base model"):
        theirs(model, tmp_path)
    with pytest.raises(CheckpointError, match="names no module of this model"):
        merge_lora(checkpoint, tmp_path)


def test_every_field_of_peft_is_known() -> None:
    """A new release's fields are looked at, not passed."""
    default = quiet({"target_modules": ["q_proj"]}).to_dict()
    default |= {"target_modules": ["q_proj"], "peft_type": "LORA"}
    read_settings(json.loads(json.dumps(default, default=str)), "adapter_config.json")


@pytest.mark.parametrize("kind", ["embed_tokens", "lm_head"])
def test_factors_of_embedding_and_head(kind: str, base: Any, tmp_path: Path) -> None:
    model, checkpoint = base
    save(model, {"target_modules": [kind, "q_proj"], "init_lora_weights": False, "r": 3}, tmp_path)
    expected, ours = theirs(model, tmp_path), merge_lora(checkpoint, tmp_path)
    changed = [n for n in expected if not np.array_equal(expected[n], checkpoint.read(n))]
    assert len(changed) == 3
    for name, value in expected.items():
        assert np.allclose(ours.read(name), value, rtol=1e-5, atol=1e-5), name


JUNK = st.recursive(
    st.sampled_from([None, True, 0, -1, 1.5, "", "(", "x", float("inf")]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("a("), inner),
    max_leaves=3,
)


@given(configs(), st.sampled_from([*quiet({"target_modules": "x"}).to_dict()]), JUNK)
@settings(max_examples=300, phases=[Phase.generate])
def test_no_setting_is_a_crash(made: dict[str, Any], name: str, junk: Any) -> None:
    try:
        found = read_settings({**made, name: junk}, "adapter_config.json")
    except CheckpointError as error:
        said = str(error)
    else:
        said = ""
        for module in MODULES:
            found.targets.has(module)
            by_pattern(found.ranks, module, found.rank)
    assert len(said.splitlines()) <= 12
    event("refused" if said else "read")
