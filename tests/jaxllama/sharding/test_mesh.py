"""Meshes as people write them, and the models that cannot lie on one."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import typer.testing
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from witnesses import small

import parity
from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.cli import app as jaxllama_app
from jaxllama.errors import InputError
from jaxllama.sharding import AXES, ModelSharding, make_mesh, model_sharding, parse_mesh
from jaxllama.sharding.layout import mesh_problems, whole_heads
from jaxllama.sharding.rules import ACTIVATIONS, PARAMETERS, RULES
from jaxllama.taps import CACHE_TAPS, LAYER_TAPS, MODEL_TAPS
from parity.cli import app as parity_app


def sizes(**named: int) -> dict[str, int]:
    return {"data": 1, "fsdp": 1, "tensor": 1, **named}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tensor=4,data=2", sizes(data=2, tensor=4)),
        (" fsdp = 3 ,", sizes(fsdp=3)),
        ({"tensor": 2}, sizes(tensor=2)),
    ],
)
def test_a_mesh_is_read(given: object, expected: dict[str, int]) -> None:
    assert parse_mesh(given) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "nothing is named"),
        ("model=2", "axis 'model': expected data, fsdp, tensor"),
        ("tensor=2,tensor=4", "axis tensor is named twice"),
        ("tensor=0", "tensor=0: expected a whole number above 0"),
        ("tensor=-2", "tensor=-2: expected"),
        ("tensor=2.0", "tensor=2.0: expected"),
        ("tensor=" + "9" * 5000, "expected a whole number above 0"),
        ("tensor=²", "tensor=²: expected"),
        ("tensor", "tensor=: expected"),
        ({"data": 0}, "data=0: expected"),
    ],
)
def test_what_is_no_mesh_is_refused(given: object, said: str) -> None:
    with pytest.raises(InputError, match="mesh") as refused:
        parse_mesh(given)  # type: ignore[arg-type]
    assert said in str(refused.value)


@pytest.mark.ill_typed
@pytest.mark.parametrize("given", [2, ["tensor", 2], AbstractMesh((1,), ("tensor",))])
def test_what_is_nothing_like_a_mesh_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="expected text such as tensor=4,data=2"):
        parse_mesh(given)  # type: ignore[arg-type]


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as refused:
        parse_mesh("model=2,tensor=x")
    assert "'model'" in str(refused.value) and "tensor=x" in str(refused.value)


def test_devices_that_are_not_there_are_refused_before_anything_is_read() -> None:
    def unread(name: str) -> np.ndarray:
        raise AssertionError(name)

    checkpoint = Checkpoint(**{**vars(small()), "reader": unread, "part_reader": None})
    count = jax.device_count()
    with pytest.raises(InputError, match=rf"takes {2 * count} devices, JAX sees {count} \(cpu\)"):
        load_model(checkpoint, dtype="float32", mesh=f"tensor={2 * count}")
    with pytest.raises(InputError, match=f"JAX_NUM_CPU_DEVICES={2 * count}"):
        make_mesh(f"data={2 * count}")


def test_no_devices_are_asked_for_to_no_avail(tmp_path: Path) -> None:
    """Of `tiny`, which 16 does not divide: who made as many devices would be refused again."""
    run = typer.testing.CliRunner().invoke
    for app, words in ((jaxllama_app, ["generate", "tiny", "Once"]), (parity_app, ["run", "tiny"])):
        for mesh, count in (("tensor=16", 16), ("tensor=7,data=2", 14)):
            ended = run(app, [*words, "--mesh", mesh])
            assert ended.exit_code == 2 and f"takes {count} devices, JAX sees " in ended.stderr
            assert "intermediate_size 136 does not divide" in ended.stderr
            assert "JAX_NUM_CPU_DEVICES" not in ended.stderr
    with pytest.raises(InputError, match="does not divide by tensor=16"):
        parity.capture("tiny", tmp_path / "traces", mesh="tensor=16")


def test_a_mesh_of_jax_keeps_its_devices_whatever_the_order_of_its_axes() -> None:
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    found = make_mesh(Mesh(devices, ("tensor", "data")))
    assert found.axis_names == ("data", "fsdp", "tensor") and found.devices.shape == (1, 1, 1)
    with pytest.raises(InputError, match="axis 'x'"):
        make_mesh(Mesh(devices, ("tensor", "x")))


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (sizes(tensor=7), "intermediate_size 136 does not divide by tensor=7"),
        (sizes(tensor=7), "vocab_size 264 does not divide by tensor=7"),
        (sizes(fsdp=9), "hidden_size 96 does not divide by fsdp=9"),
    ],
)
def test_what_a_mesh_does_not_divide_is_named(mesh: dict[str, int], said: str) -> None:
    assert said in "\n".join(mesh_problems(mesh, small().config, None))
    assert not mesh_problems(sizes(tensor=8, fsdp=4), small().config, None)


def test_fused_products_are_not_cut_by_heads() -> None:
    config = small().config
    assert "choose stacked or unrolled" in mesh_problems(sizes(tensor=2), config, "fused")[0]
    assert not mesh_problems(sizes(fsdp=2), config, "fused")


@pytest.mark.parametrize(
    ("heads", "tensor", "whole"),
    [
        ((8, 4), 4, set()),
        ((8, 2), 4, {"kv_heads"}),
        ((8, 2), 8, {"kv_heads"}),
        ((6, 2), 4, {"heads", "kv_heads"}),
        ((12, 3), 2, {"heads", "kv_heads"}),  # a device would have halves of a group
        ((9, 3), 3, set()),
    ],
)
def test_heads_are_cut_where_each_device_gets_whole_groups(
    heads: tuple[int, int], tensor: int, whole: set[str]
) -> None:
    assert whole_heads(sizes(tensor=tensor), small(heads).config) == whole


def on_paper(**named: int) -> ModelSharding:
    """Return a sharding over as many devices as are asked for: nothing is placed on it."""
    abstract = AbstractMesh(tuple(sizes(**named).values()), AXES)
    return ModelSharding(abstract, small((8, 2)).config)


def test_what_is_whole_though_it_could_be_cut_is_noted() -> None:
    assert not on_paper(tensor=2).notes and not on_paper(fsdp=8).notes
    assert on_paper(tensor=8).notes == [
        "tensor=8 is more than 2 kv heads: each device along it has all"
    ]
    assert "attention is whole on every device" in on_paper(tensor=16).notes[0]


def test_rows_are_cut_along_as_many_axes_as_divide_them() -> None:
    sharding = on_paper(data=2, fsdp=4)
    names = ("batch", None)
    assert sharding.spec(names, (8, 5)) == PartitionSpec(("data", "fsdp"))
    assert sharding.spec(names, (6, 5)) == PartitionSpec(("data",))
    assert sharding.spec(names, (3, 5)) == PartitionSpec()


@pytest.mark.parametrize("form", ["stacked", "unrolled"])
def test_a_parameter_is_found_in_any_form(form: str) -> None:
    sharding = on_paper(fsdp=2, tensor=4)
    place = ("layers",) if form == "stacked" else ("layers", 1)
    lead, shape = ([None], (2, 96, 136)) if form == "stacked" else ([], (96, 136))
    path = (*place, "mlp", "down_proj", "weight")
    spec = sharding.spec(*[(*lead, "embed", "mlp"), shape])
    assert spec == PartitionSpec(*lead, ("fsdp",), ("tensor",))
    found = sharding.of_parameter(path, shape)
    assert found.spec == spec
    assert sharding.of_parameter(("norm", "weight"), (96,)).spec == PartitionSpec()


def test_every_tap_and_parameter_has_its_names() -> None:
    assert {*ACTIVATIONS} == {*MODEL_TAPS, *LAYER_TAPS, *CACHE_TAPS} - {"rope.inv_freq"}
    named = {name for names in (*ACTIVATIONS.values(), *PARAMETERS.values()) for name in names}
    assert named - {None} == {*RULES}


def test_model_sharding_is_handed_back() -> None:
    sharding = model_sharding("tensor=1", small().config)
    assert model_sharding(sharding, small().config) is sharding
