"""Models written as checkpoints: what other libraries and parity's own readers find in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import parity
from jaxllama import Llama
from jaxllama.checkpoint import (
    FORMATS,
    Checkpoint,
    convert,
    from_model,
    open_checkpoint,
    stream,
    tiny,
    verify,
)
from jaxllama.errors import CheckpointError, InputError
from parity.sources.open import open_source

Q = "model.layers.1.self_attn.q_proj.weight"
TOKENS = np.random.default_rng(3).integers(0, 256, (1, 29))


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return tiny(num_hidden_layers=2)


@pytest.fixture
def model(source: Checkpoint) -> Llama:
    return Llama.from_pretrained(source, form="stacked")


def edit(model: Llama, change: Callable[[Any], Any]) -> None:
    """Change q of the last layer, as a step of training would."""
    weight = model.layers.self_attn.q_proj.weight
    weight.set_value(weight[...].at[1].set(change(weight[...][1])))


def weights(directory: Path) -> dict[str, np.ndarray]:
    """Return all tensors by parity's own reader of the format."""
    source = open_source(directory)
    return {name: source.read(name) for name in source.tensors}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("form", FORMATS)
def test_other_readers_find_the_models_parameters(
    tmp_path: Path, source: Checkpoint, model: Llama, form: str, dtype: str | None
):
    """After a change of one of them: what is written is what the model has become."""
    edit(model, lambda q: -q)
    done = model.save_pretrained(tmp_path / "out", format=form, dtype=dtype)
    found = weights(tmp_path / "out")
    assert found.keys() == source.tensors.keys() == done.digests.keys()
    kind = np.dtype(np.float32) if dtype is None else np.dtype(ml_dtypes.bfloat16)
    for name, values in found.items():
        expected = source.read(name).astype(kind)
        assert values.dtype == expected.dtype
        assert np.array_equal(values, -expected if name == Q else expected), name
    assert bool(done.losses) == (dtype is not None)
    if dtype is None:
        assert verify(model, tmp_path / "out").equal
        assert [one.name for one in verify(source, tmp_path / "out").differences] == [Q]


def test_transformers_gives_the_same_logits(tmp_path: Path, model: Llama):
    model.save_pretrained(tmp_path / "out", shards=2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    T = TOKENS.shape[1]

    def ours() -> np.ndarray:
        mask = jnp.tril(jnp.ones((1, T, T), bool))
        return np.asarray(model(jnp.asarray(TOKENS), positions=jnp.arange(T)[None], mask=mask)[0])

    with torch.no_grad():
        logits = theirs(torch.tensor(TOKENS)).logits.numpy()
    assert np.abs(ours() - logits).max() < 2e-5 * np.abs(logits).max()
    edit(model, lambda q: -q)
    assert np.abs(ours() - logits).max() > 2e-2 * np.abs(logits).max()
    own = open_checkpoint(tmp_path / "out").tokenizer()
    assert tokenizer("Two words").input_ids == own.encode("Two words")


def test_llama_cpps_reader_finds_tensors_and_tokenizer(tmp_path: Path, model: Llama):
    model.save_pretrained(tmp_path / "m.gguf", format="gguf", dtype="bfloat16")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    up = found["blk.1.ffn_up.weight"]
    assert up.tensor_type == gguf.GGMLQuantizationType.BF16
    expected = model.layers.mlp.up_proj.weight[...][1].astype(jnp.bfloat16)
    assert np.array_equal(up.data.view(ml_dtypes.bfloat16).reshape(expected.shape), expected)
    assert reader.fields["tokenizer.ggml.tokens"].contents(256) == "<|begin_of_text|>"


@pytest.mark.parametrize("param_dtype", ["bfloat16", "float16", "float64"])
def test_parameters_keep_their_dtype(tmp_path: Path, source: Checkpoint, param_dtype: str):
    model = Llama.from_pretrained(source, dtype=np.float32, param_dtype=param_dtype)
    done = convert(model, tmp_path / "out", to="hf")
    assert not done.losses
    assert {t.dtype.name for t in open_checkpoint(tmp_path / "out").tensors.values()} == {
        param_dtype
    }


def test_the_tokenizer_is_that_of_the_checkpoint_or_of_another(tmp_path: Path, model: Llama):
    """A model that was merged of its parts has none, which is said."""
    merged = nnx.merge(*nnx.split(model))
    done = merged.save_pretrained(tmp_path / "bare")
    assert "no tokenizer is known of this model" in done.notes[0]
    assert not (tmp_path / "bare" / "tokenizer.json").exists()
    assert not merged.save_pretrained(tmp_path / "given", tokenizer="tiny").notes
    assert not model.save_pretrained(tmp_path / "own").notes
    for name in ("given", "own"):
        assert open_checkpoint(tmp_path / name).tokenizer().chat_template
    again = Llama.from_pretrained(tmp_path / "own")
    again.save_pretrained(tmp_path / "twice", format="meta")
    assert verify(tmp_path / "own", tmp_path / "twice").equal


def test_what_config_says_besides_is_carried(tmp_path: Path, source: Checkpoint, model: Llama):
    model.save_pretrained(tmp_path / "first")
    config = tmp_path / "first" / "config.json"
    config.write_text(config.read_text().replace("{", '{"initializer_range": 0.5,', 1))
    Llama.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert open_checkpoint(tmp_path / "second").hf_config["initializer_range"] == 0.5
    assert "initializer_range" not in from_model(model).hf_config


def test_a_model_is_compared_with_pytorch_like_a_checkpoint(model: Llama):
    edit(model, lambda q: -q)
    result = parity.run(from_model(model), dtypes="f64", scenarios="causal", modes="free", length=7)
    assert result.exit_code == 0


def abstract(model: Llama) -> Llama:
    return nnx.eval_shape(lambda: model)


def donated(model: Llama) -> Llama:
    model.norm.weight[...].delete()
    return model


def extended(model: Llama) -> Llama:
    model.norm.bias = nnx.Param(jnp.zeros(3))
    return model


REFUSED: dict[str, Callable[[Llama], Llama]] = {
    "shapes and no values": abstract,
    "given away": donated,
    "norm.bias: no parameter of a Llama": extended,
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_model_without_values_is_refused(tmp_path: Path, model: Llama, said: str):
    with pytest.raises(InputError, match=said):
        REFUSED[said](model).save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_traced_model_is_refused(tmp_path: Path, model: Llama):
    def step(model: Llama) -> jax.Array:
        model.save_pretrained(tmp_path / "out")
        return jnp.zeros(())

    for transformed in (nnx.jit(step), nnx.grad(step)):
        with pytest.raises(InputError, match="the model is being traced"):
            transformed(model)
    assert not list(tmp_path.iterdir())


def test_values_that_nothing_can_load_leave_nothing(tmp_path: Path, model: Llama):
    edit(model, lambda q: q.at[0, 0].set(jnp.nan))
    with pytest.raises(CheckpointError, match=f"the model: {Q}: 1 elements NaN"):
        model.save_pretrained(tmp_path / "out")
    edit(model, lambda q: q.at[0, 0].set(1e6))
    with pytest.raises(CheckpointError, match="overflow in float16"):
        model.save_pretrained(tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "out")


def test_targets_that_are_refused(tmp_path: Path, model: Llama):
    with pytest.raises(InputError, match="format 'pt': expected one of hf, meta, orbax, gguf"):
        model.save_pretrained(tmp_path / "out", format="pt")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written: "):
        model.save_pretrained(tmp_path / "file" / "out")
    model.save_pretrained(tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists already"):
        model.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "out", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="is not a checkpoint and nothing else"):
        model.save_pretrained(tmp_path / "mine", overwrite=True)


def test_a_full_disk_leaves_nothing(tmp_path: Path, model: Llama, monkeypatch: pytest.MonkeyPatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(CheckpointError, match="No space left on device; nothing is left of it"):
            model.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "out")


def test_a_model_may_replace_what_it_was_loaded_from(tmp_path: Path, model: Llama):
    model.save_pretrained(tmp_path / "out")
    again = Llama.from_pretrained(tmp_path / "out", form="stacked")
    edit(again, lambda q: -q)
    again.save_pretrained(tmp_path / "out", overwrite=True)
    assert verify(again, tmp_path / "out").equal
    assert not verify(model, tmp_path / "out").equal
    assert open_checkpoint(tmp_path / "out").tokenizer()


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_save_goes_on_where_the_model_is_the_same(
    tmp_path: Path, model: Llama, changed: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)

    def interrupt(name: str, nbytes: int, total: int) -> None:
        if name == "lm_head.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "out", to="hf", progress=interrupt)
    assert not (tmp_path / "out").exists()
    if changed:
        edit(model, lambda q: -q)
    done = model.save_pretrained(tmp_path / "out")
    assert (done.resumed > 0) != changed
    assert verify(model, tmp_path / "out").equal
