"""Adapters written here are PEFT's: it loads them, and gives the logits that the factors mean."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

import jaxllama
from jaxllama.checkpoint import Checkpoint, convert, open_checkpoint, tiny
from jaxllama.checkpoint.lora import merge_lora, save_lora
from jaxllama.errors import CheckpointError, InputError

Q, V, DOWN = "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return tiny(num_hidden_layers=2)


@pytest.fixture(scope="module")
def theirs(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("base") / "hf"
    convert(base, place, to="hf")
    return transformers.AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager")


def layer(number: int, module: str) -> str:
    return f"model.layers.{number}.{module}.weight"


def pair(base: Checkpoint, name: str, rank: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = base.tensors[name].shape[:: -1 if name == TABLE else 1]
    a, b = RNG.standard_normal((rank, columns)), RNG.standard_normal((rows, rank)) * 0.1
    return a.astype(np.float32), b.astype(np.float32)


@contextmanager
def pefts_warnings() -> Iterator[None]:
    """Let PEFT warn of factors that it misses or does not know, but not of what it uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def loaded_by_peft(theirs: Any, adapter: Path) -> Any:
    with pefts_warnings():
        return peft.PeftModel.from_pretrained(copy.deepcopy(theirs), adapter)


CASES: dict[str, tuple[list[str], dict[str, int], Any]] = {
    "some modules of all layers": (
        [layer(i, m) for i in (0, 1) for m in (Q, V)],
        {},
        ["q_proj", "v_proj"],
    ),
    "one layer alone": ([layer(1, Q)], {}, ["model.layers.1.self_attn.q_proj"]),
    "a whole one and part of another": (
        [layer(0, Q), layer(1, Q), layer(0, DOWN)],
        {},
        ["model.layers.0.mlp.down_proj", "q_proj"],
    ),
    "other ranks": (
        [layer(0, Q), layer(1, Q), layer(0, V), layer(1, V)],
        {layer(1, Q): 5, layer(0, V): 1},
        ["q_proj", "v_proj"],
    ),
    "the head": ([HEAD, layer(0, V), layer(1, V)], {}, ["lm_head", "v_proj"]),
    "the embedding": (
        [TABLE, layer(0, V)],
        {},
        ["embed_tokens", "model.layers.0.self_attn.v_proj"],
    ),
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_peft_adds_what_the_factors_mean(
    tmp_path: Path, base: Checkpoint, theirs: Any, case: str, rslora: bool
):
    names, ranks, targets = CASES[case]
    factors = {name: pair(base, name, ranks.get(name, 3)) for name in names}
    where = save_lora(factors, base.config, tmp_path / "a", alpha=6, rslora=rslora)
    stated = json.loads((where / "adapter_config.json").read_text())
    assert stated["target_modules"] == targets
    assert stated["rank_pattern"] == {n.removesuffix(".weight"): r for n, r in ranks.items()}
    merged = loaded_by_peft(theirs, where).merge_and_unload().state_dict()
    ours = merge_lora(base, where)
    for name in base.tensors:
        expected = base.read(name).astype(np.float64)
        if name in factors:
            a, b = factors[name]
            rank = len(a)
            scale = 6 / (rank**0.5 if rslora else rank)
            change = scale * b.astype(np.float64) @ a
            assert np.abs(change).max() > 0.1
            expected = expected + (change.T if name == TABLE else change)
        for found in (merged[name].numpy(), ours.read(name)):
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-5), name
    assert not [note for note in ours.notes if "left as it is" in note]


def test_logits_are_those_of_peft_and_of_our_merge(tmp_path: Path, base: Checkpoint, theirs: Any):
    """And not those of the base, or of another alpha."""
    factors = {layer(i, m): pair(base, layer(i, m)) for i in (0, 1) for m in (Q, DOWN)}
    tokens = RNG.integers(0, 256, (1, 19))

    def by_peft(adapter: Path) -> np.ndarray:
        with torch.no_grad():
            return loaded_by_peft(theirs, adapter)(torch.tensor(tokens)).logits.numpy()

    def ours(adapter: Path) -> np.ndarray:
        model = jaxllama.Llama.from_pretrained(merge_lora(base, adapter))
        mask = jnp.tril(jnp.ones((1, 19, 19), bool))
        return np.asarray(model(jnp.asarray(tokens), positions=jnp.arange(19)[None], mask=mask)[0])

    found = [
        run(save_lora(factors, base.config, tmp_path / f"{run.__name__}{alpha}", alpha=alpha))
        for run in (by_peft, ours)
        for alpha in (6, 7)
    ]
    size = np.abs(found[0]).max()
    assert np.abs(found[0] - found[2]).max() < 2e-5 * size
    assert np.abs(found[1] - found[3]).max() < 2e-5 * size
    assert np.abs(found[0] - found[1]).max() > 1e-3 * size
    with torch.no_grad():
        assert np.abs(theirs(torch.tensor(tokens)).logits.numpy() - found[0]).max() > 1e-3 * size


def test_peft_finds_the_base_that_is_named(tmp_path: Path, base: Checkpoint):
    convert(base, tmp_path / "base", to="hf")
    factors = {layer(1, V): pair(base, layer(1, V))}
    named = str(tmp_path / "base")
    save_lora(factors, base.config, tmp_path / "a", alpha=6.0, base=named)
    assert '"lora_alpha": 6,' in (tmp_path / "a" / "adapter_config.json").read_text()
    with pefts_warnings():
        found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").merge_and_unload()
    ours = merge_lora(base, tmp_path / "a").read(layer(1, V))
    assert np.allclose(found.state_dict()[layer(1, V)].numpy(), ours, rtol=1e-5, atol=1e-5)
    assert not np.allclose(base.read(layer(1, V)), ours, rtol=1e-2, atol=1e-2)


def test_stacked_factors_are_taken_apart(tmp_path: Path, base: Checkpoint):
    pairs = [pair(base, layer(i, Q)) for i in (0, 1)]
    stacked = tuple(jnp.stack([one[which] for one in pairs]) for which in (0, 1))
    save_lora({layer(0, Q).replace("0", "{i}"): stacked}, base.config, tmp_path / "a", alpha=6)
    single = {layer(i, Q): one for i, one in enumerate(pairs)}
    save_lora(single, base.config, tmp_path / "b", alpha=6)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_dtypes_are_kept_or_chosen(tmp_path: Path, base: Checkpoint):
    a, b = pair(base, layer(0, Q))
    factors = {layer(0, Q): (jnp.asarray(a, jnp.bfloat16), b)}
    save_lora(factors, base.config, tmp_path / "own", alpha=6)
    save_lora(factors, base.config, tmp_path / "bf16", alpha=6, dtype="bf16", base="org/m")
    found = [
        sorted(
            values.dtype.name
            for values in safetensors.numpy.load_file(
                tmp_path / name / "adapter_model.safetensors"
            ).values()
        )
        for name in ("own", "bf16")
    ]
    assert found == [["bfloat16", "float32"], ["bfloat16", "bfloat16"]]
    config = json.loads((tmp_path / "bf16" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/m"


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({}, "LoRA factors: there are none"),
        ({"model.layers.0.q.weight": (2, 2)}, "model.layers.0.q.weight: no weight of this model"),
        ({"model.layers.2.self_attn.q_proj.weight": (2, 2)}, "no weight of this model"),
        ({"model.norm.weight": (2, 2)}, "model.norm.weight: no matrix of this model; expected"),
        ({layer(0, Q): (2, 3)}, "expected \\(r, 96\\) and \\(96, r\\)"),
        ({layer(0, DOWN): (2, 2)}, "expected \\(r, 136\\) and \\(96, r\\)"),
        ({layer(0, Q): (2,)}, "1 factors, expected two, A and B"),
        ({"model.layers.{i}.self_attn.q_proj.weight": (2, 2)}, "for all layers these are"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    tmp_path: Path, base: Checkpoint, factors: dict[str, Any], said: str
):
    made = {
        name: [np.ones((rank, 96) if i == 0 else (96, rank)) for i, rank in enumerate(ranks)]
        for name, ranks in factors.items()
    }
    with pytest.raises(InputError, match=said):
        save_lora(made, base.config, tmp_path / "a", alpha=6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), True])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, base: Checkpoint, alpha: float):
    with pytest.raises(InputError, match=r"alpha .*: expected a finite number"):
        save_lora({layer(0, Q): pair(base, layer(0, Q))}, base.config, tmp_path / "a", alpha=alpha)


def test_tied_and_traced_factors_are_refused(tmp_path: Path, base: Checkpoint):
    tied = tiny(num_hidden_layers=2, tie_word_embeddings=True)
    with pytest.raises(InputError, match="head and embedding are tied"):
        save_lora({TABLE: pair(tied, TABLE)}, tied.config, tmp_path / "a", alpha=6)
    a, b = pair(base, layer(0, Q))

    def traced(scale: jax.Array) -> jax.Array:
        save_lora({layer(0, Q): (a * scale, b)}, base.config, tmp_path / "a", alpha=6)
        return scale

    def closed_over(scale: jax.Array) -> jax.Array:
        save_lora({layer(0, Q): (jnp_a, b)}, base.config, tmp_path / "b", alpha=6)
        return scale

    with pytest.raises(InputError, match="are being traced"):
        jax.jit(traced)(jnp.float32(2))
    assert not list(tmp_path.iterdir())
    jnp_a = jnp.asarray(a)
    jax.jit(closed_over)(jnp.float32(2))
    assert merge_lora(base, tmp_path / "b")


def test_nothing_is_written_in_part_or_over_other_things(tmp_path: Path, base: Checkpoint):
    a, b = pair(base, layer(0, Q))
    with pytest.raises(
        CheckpointError, match=f"LoRA factors: .*lora_A.weight: {a.size} elements NaN"
    ):
        save_lora({layer(0, Q): (a * np.float32("nan"), b)}, base.config, tmp_path / "a", alpha=6)
    with pytest.raises(CheckpointError, match="overflow in float16"):
        save_lora({layer(0, Q): (a * 1e6, b)}, base.config, tmp_path / "a", alpha=6, dtype="f16")
    assert not list(tmp_path.iterdir())
    save_lora({layer(0, Q): (a, b)}, base.config, tmp_path / "a", alpha=6)
    with pytest.raises(CheckpointError, match="exists already"):
        save_lora({layer(0, Q): (a, b)}, base.config, tmp_path / "a", alpha=6)
    save_lora({layer(0, Q): (a, b)}, base.config, tmp_path / "a", alpha=7, overwrite=True)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_alpha"] == 7
    convert(base, tmp_path / "model", to="hf")
    with pytest.raises(InputError, match="is not an adapter and nothing else"):
        save_lora({layer(0, Q): (a, b)}, base.config, tmp_path / "model", alpha=6, overwrite=True)
    assert open_checkpoint(tmp_path / "model")
