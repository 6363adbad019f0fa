"""A model that is loaded onto a mesh: the same weights, and no byte that is not a device's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from witnesses import small

from jaxllama import convert, open_checkpoint
from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.checkpoint.hf import safetensors_file
from jaxllama.checkpoint.load.arrays import ArrayReader
from jaxllama.errors import CheckpointError
from jaxllama.forms import Form
from jaxllama.model import Llama
from jaxllama.quantisation import Int4Array, Int8Array
from jaxllama.quantisation.choice import parse_quant
from jaxllama.quantisation.product import quantised_product
from jaxllama.sharding import make_mesh

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


def numbers(array: Any) -> list[np.ndarray]:
    """Return numbers and scales, however vectors are packed."""
    held = array.as_int8() if isinstance(array, Int8Array | Int4Array) else array
    return [np.asarray(leaf) for leaf in jax.tree.leaves(held)]


@pytest.mark.parametrize(
    ("quant", "mesh", "form"),
    [
        ("int8", "fsdp=2,tensor=4", "stacked"),
        ("int4:2", "fsdp=2,tensor=4", "stacked"),
        ("int4:4", "fsdp=2,tensor=4", "unrolled"),
        ("int4:8", "fsdp=4", "fused"),
    ],
)
def test_fewer_bits_are_the_same_on_a_mesh(
    directory: Path, quant: str, mesh: str, form: Form
) -> None:
    """Vectors are rounded as a whole, though a device has a part: to the bit as without a mesh."""
    for name in ("hf", "gguf"):  # which is read by parts, and which is not
        how = {"dtype": "float32", "form": form, "quant": quant}
        plain = arrays(load_model(directory / name, **how))
        for path, array in arrays(load_model(directory / name, **how, mesh=mesh)).items():
            for ours, theirs in zip(numbers(array), numbers(plain[path]), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def part_of(array: Any) -> tuple[int, ...]:
    """Return how often a device's part of the numbers goes into all, along each axis."""
    leaf = jax.tree.leaves(array)[0]
    part = leaf.addressable_shards[0].data.shape
    return tuple(n // m for n, m in zip(leaf.shape, part, strict=True))


@pytest.mark.parametrize(
    ("quant", "down"),
    [
        ("int8", (2, 4)),
        ("int4:2", (2, 4)),
        ("int4:8", (2, 1)),  # 136 inputs are 17 groups, which 4 does not divide
    ],
)
def test_vectors_are_cut_where_groups_divide(quant: str, down: tuple[int, int]) -> None:
    model = load_model(
        SOURCE, dtype="float32", form="unrolled", quant=quant, mesh="fsdp=2,tensor=4"
    )
    layer = model.layer(0)
    assert part_of(layer.self_attn.o_proj.weight.get_value()) == (2, 4)
    assert part_of(layer.mlp.down_proj.weight.get_value()) == down
    assert part_of(layer.mlp.up_proj.weight.get_value()) == (4, 2)


@pytest.mark.parametrize("quant", ["int8", "int4:2"])
def test_a_product_with_cut_vectors_is_the_same_to_the_bit(quant: str) -> None:
    """Sums of whole numbers are exact in any order: what tensor parallelism adds up is no other."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((24, 64)).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((3, 64)), jnp.float32)
    how, mesh = parse_quant(quant), make_mesh("tensor=8")
    found = []
    for parts in (1, 8):
        held = how.empty(matrix.shape, parts)
        held[...] = matrix
        cut = PartitionSpec(None, "tensor") if parts > 1 else PartitionSpec()
        put = jax.tree.map(
            lambda a, cut=cut: jax.device_put(
                a, NamedSharding(mesh, cut if a.ndim > 1 else PartitionSpec())
            ),
            held,
        )
        found.append(jax.jit(quantised_product, static_argnums=2)(x, put, "float32"))
    np.testing.assert_array_equal(*found)
    exact = np.asarray(x) @ matrix.T
    lost = np.linalg.norm(found[1] - exact) / np.linalg.norm(exact)
    assert lost < {"int8": 0.02, "int4:2": 0.2}[quant]


@pytest.mark.parametrize("mesh", ["tensor=8", "fsdp=2,tensor=4"])
def test_of_fewer_bits_no_byte_is_read_twice_either(
    directory: Path, mesh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, counted = open_checkpoint(directory / "hf"), []
    read_into = safetensors_file.read_into

    def counting(file: Any, offset: int, raw: np.ndarray) -> None:
        counted.append(raw.size)
        read_into(file, offset, raw)

    monkeypatch.setattr(safetensors_file, "read_into", counting)
    load_model(opened, dtype="bfloat16", form="unrolled", mesh=mesh, quant="int4:2")
    assert sum(counted) == opened.nbytes
    # A host that has one device's rows reads these alone.
    how, name = parse_quant("int4:2"), ("layers", 1, "mlp", "up_proj", "weight")
    rows, columns = opened.tensors["model.layers.1.mlp.up_proj.weight"].shape
    reader = ArrayReader(opened, name, (rows, columns), np.dtype(np.float32), how)
    counted.clear()
    part = reader.part((slice(0, rows // 8), slice(None)))
    assert sum(counted) == rows // 8 * columns * 2 and part.shape == (rows // 8, columns)


@pytest.mark.parametrize("quant", ["int8", "int4:2"])
def test_what_is_written_in_fewer_bits_is_the_same_on_a_mesh(quant: str) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7]]

    def written(mesh: str | None) -> Any:
        model = load_model(SOURCE, dtype="float32", form="unrolled", quant=quant, mesh=mesh)
        return model.generate(prompts, max_new_tokens=6, cache_dtype="int8", eos_ids=())

    expected, found = written(None), written("fsdp=2,tensor=4")
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
