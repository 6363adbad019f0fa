"""A model that is loaded onto a mesh: the same weights, and no byte that is not a device's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from witnesses import small

from jaxllama import convert, open_checkpoint
from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.checkpoint.hf import safetensors_file
from jaxllama.errors import CheckpointError
from jaxllama.forms import Form
from jaxllama.model import Llama

# Meta's format takes the head dim from the others.
SOURCE = small((8, 2), dtype="bfloat16", head_dim=12)
FORMATS = ("hf", "meta", "gguf", "orbax")


def arrays(model: Llama) -> dict[tuple[Any, ...], jax.Array]:
    return {path: held.get_value() for path, held in nnx.to_flat_state(nnx.state(model, nnx.Param))}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("formats")
    for name in FORMATS:
        convert(SOURCE, here / name, to=name)
    return here


@pytest.mark.parametrize(
    ("name", "mesh", "form"),
    [
        *((name, "data=2,fsdp=2,tensor=2", "stacked") for name in FORMATS),
        *((name, "tensor=8", "unrolled") for name in FORMATS),
        ("hf", "fsdp=4", "fused"),
    ],
)
def test_weights_are_the_same_to_the_bit(directory: Path, name: str, mesh: str, form: Form) -> None:
    loaded = load_model(directory / name, dtype="bfloat16", form=form, mesh=mesh)
    plain = arrays(load_model(directory / name, dtype="bfloat16", form=form))
    found = arrays(loaded)
    assert {*found} == {*plain}
    for path, array in found.items():
        assert loaded.sharding is not None
        assert array.sharding == loaded.sharding.of_parameter(path, array.shape)
        np.testing.assert_array_equal(np.asarray(array), np.asarray(plain[path]))


def test_each_device_holds_its_part() -> None:
    model = load_model(SOURCE, dtype="float32", form="unrolled", mesh="fsdp=2,tensor=4")
    held = dict.fromkeys(jax.devices(), 0)
    for array in arrays(model).values():
        for part in array.addressable_shards:
            held[part.device] += part.data.nbytes
    whole = sum(array.nbytes for array in arrays(model).values())
    # What is more than an eighth: norms, and keys and values, which a half of `tensor` shares.
    assert whole / 8 < max(held.values()) < 1.25 * whole / 8
    assert len({*held.values()}) == 1


@pytest.mark.parametrize("mesh", ["tensor=8", "fsdp=8", "data=8", "fsdp=2,tensor=4"])
def test_no_byte_is_read_twice_or_beside_a_part(
    directory: Path, mesh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    read_into = safetensors_file.read_into

    def counting(file: Any, offset: int, raw: np.ndarray) -> None:
        counted.append(raw.size)
        read_into(file, offset, raw)

    opened = open_checkpoint(directory / "hf")
    monkeypatch.setattr(safetensors_file, "read_into", counting)
    load_model(opened, dtype="bfloat16", form="unrolled", mesh=mesh)
    assert sum(counted) == opened.nbytes


def test_a_part_alone_reads_its_own_bytes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process reads that has two of eight devices, as it has among several hosts."""
    opened = open_checkpoint(directory / "hf")
    name = "model.layers.1.mlp.down_proj.weight"
    counted: list[int] = []
    read_into = safetensors_file.read_into
    monkeypatch.setattr(
        safetensors_file,
        "read_into",
        lambda file, offset, raw: (counted.append(raw.size), read_into(file, offset, raw))[1],
    )
    rows, columns = opened.tensors[name].shape
    index = (slice(rows // 2, rows), slice(0, columns // 4))
    part = opened.read_part(name, index)
    assert sum(counted) == part.nbytes == rows * columns * 2 // 8
    np.testing.assert_array_equal(part, opened.read(name)[index])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "tensor", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_parts_are_those_of_the_whole(directory: Path, name: str, tensor: str) -> None:
    opened = open_checkpoint(directory / name)
    whole = opened.read(tensor)
    for cut in (slice(0, 16), slice(32, 96), slice(7, 8)):
        for more in ((), (slice(0, 96),), (slice(3, 50),)):
            index = (cut, *more) if whole.ndim > 1 else (cut,)
            if len(index) == whole.ndim:
                np.testing.assert_array_equal(opened.read_part(tensor, index), whole[index])


def broken(value: float) -> Checkpoint:
    name = "model.layers.1.mlp.up_proj.weight"
    weights = {n: np.array(SOURCE.read(n)) for n in SOURCE.tensors}
    weights[name][-1, -1] = value

    return replace(
        SOURCE, reader=lambda n: weights[n], part_reader=lambda n, index: weights[n][index]
    )


@pytest.mark.parametrize("form", ["stacked", "unrolled"])
def test_values_that_are_not_finite_are_found_in_whichever_part(form: Form) -> None:
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_model(broken(float("nan")), dtype="float32", form=form, mesh="tensor=8")
    load_model(broken(1.0), dtype="float32", form=form, mesh="tensor=8")


@pytest.mark.parametrize("quant", ["int8", "int4:8"])
@pytest.mark.parametrize("mesh", ["fsdp=2,tensor=4", "data=8"])
def test_fewer_bits_are_the_same_on_a_mesh(quant: str, mesh: str) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7]]

    def written(mesh: str | None) -> tuple[Llama, Any]:
        model = load_model(SOURCE, dtype="float32", form="unrolled", quant=quant, mesh=mesh)
        return model, model.generate(prompts, max_new_tokens=6, cache_dtype="int8", eos_ids=())

    (plain, expected), (model, found) = written(None), written(mesh)
    for path, array in arrays(model).items():
        jax.tree.map(np.testing.assert_array_equal, array, arrays(plain)[path])
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
    weight = model.layers[0].mlp.up_proj.weight.get_value()  # type: ignore[index]
    part = weight.as_int8().values.shape[0] // (4 if "tensor" in mesh else 1)
    assert jax.tree.leaves(weight)[0].addressable_shards[0].data.shape[0] == part
