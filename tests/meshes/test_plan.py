"""What is planned of a mesh is what a model that is loaded onto it has, to the byte."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from planting import planted
from witnesses import small

from jaxllama.cache import KVCache
from jaxllama.checkpoint import load_model
from jaxllama.plan import memory
from jaxllama.plan.memory import DeviceShare, device_share
from jaxllama.plan.programs import ProgramBytes, call, passes
from jaxllama.quantisation.choice import checked_quant
from jaxllama.sharding import parse_mesh

# Lowering hands descriptions of arrays in where annotations say arrays.
pytestmark = pytest.mark.ill_typed
CHECKPOINT = small((8, 2))
ROWS, SLOTS, CHUNK = 4, 56, 24
MESHES = ["tensor=8", "fsdp=2,tensor=4", "data=2,fsdp=2,tensor=2", "fsdp=8", "data=8", "tensor=2"]
DTYPES = [("float32", "float32"), ("bfloat16", "float32")]


def planned(mesh: str, dtype: str, cache_dtype: str, quant: str | None = None) -> DeviceShare:
    return device_share(
        CHECKPOINT.config,
        parse_mesh(mesh),
        rows=ROWS,
        slots=SLOTS,
        dtype=jnp.dtype(dtype),
        cache_dtype=jnp.dtype(cache_dtype),
        quant=checked_quant(quant, CHECKPOINT.config),
    )


def on_a_device(tree: Any) -> int:
    """Return the bytes of one device's parts of arrays that are there."""
    held: dict[Any, int] = {}
    for array in jax.tree.leaves(tree):
        for part in array.addressable_shards:
            held[part.device] = held.get(part.device, 0) + part.data.nbytes
    assert len({*held.values()}) == 1
    return held.popitem()[1]


def loaded(
    mesh: str, dtype: str, cache_dtype: str, quant: str | None = None
) -> tuple[Any, KVCache]:
    model = load_model(CHECKPOINT, dtype=dtype, form="stacked", mesh=mesh, quant=quant)
    cache = KVCache.empty(model.config, ROWS, SLOTS, cache_dtype, sharding=model.sharding)
    return model, cache


@pytest.mark.parametrize("quant", ["int8", "int4:2", "int4:8"])
@pytest.mark.parametrize("mesh", ["tensor=8", "fsdp=2,tensor=4"])
def test_fewer_bits_are_those_of_a_loaded_model(mesh: str, quant: str) -> None:
    model = load_model(CHECKPOINT, dtype="float32", form="stacked", mesh=mesh, quant=quant)
    share = device_share(
        model.config,
        parse_mesh(mesh),
        rows=ROWS,
        slots=SLOTS,
        dtype=np.dtype(np.float32),
        cache_dtype=np.dtype(np.int8),
        quant=checked_quant(quant, model.config),
    )
    cache = KVCache.empty(model.config, ROWS, SLOTS, "int8", sharding=model.sharding)
    assert share.weights == on_a_device(nnx.state(model, nnx.Param))
    assert share.cache_read == on_a_device((cache.k, cache.v))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
def test_weights_and_cache_are_those_of_a_loaded_model(
    mesh: str, dtype: str, cache_dtype: str
) -> None:
    model, cache = loaded(mesh, dtype, cache_dtype)
    share = planned(mesh, dtype, cache_dtype)
    assert share.weights == on_a_device(nnx.state(model, nnx.Param))
    # `slots` of no call is the host's, and holds nothing.
    assert (
        share.cache == on_a_device((cache.k, cache.v, cache.positions, cache.segments)) + 4 * ROWS
    )
    assert share.cache_read == on_a_device((cache.k, cache.v))


@pytest.mark.parametrize(
    ("module", "edit", "field"),
    [
        (
            "jaxllama.plan.memory",
            (
                "held = abstract_sharding(config, sizes)",
                "held = abstract_sharding(config, {**sizes, 'fsdp': 1})",
            ),
            "weights",
        ),
        ("jaxllama.plan.memory", ("names.get(path[0].name, ())", "()"), "cache"),
        (
            "jaxllama.plan.memory",
            ("math.prod(part) * one.dtype.itemsize", "math.prod(part) * 4"),
            "weights",
        ),
    ],
)
def test_a_wrong_share_differs(module: str, edit: tuple[str, str], field: str) -> None:
    mesh, *dtypes = "fsdp=2,tensor=2", "bfloat16", "bfloat16"
    honest = planned(mesh, *dtypes)
    memory.parameters.cache_clear()
    with planted(module, *edit):
        found = planned(mesh, *dtypes)
    assert getattr(found, field) > getattr(honest, field)


def lowered_with_values(mesh: str, tokens: int, quant: str | None = None) -> ProgramBytes:
    """Return what the compiler says of a call on a model that is there."""
    model, cache = loaded(mesh, "float32", "float32", quant)
    assert model.sharding is not None
    whole = model.sharding.of((), ())
    ids = jax.device_put(np.zeros((ROWS, tokens), np.int32), whole)
    valid = jax.device_put(np.ones((ROWS, tokens), np.bool_), whole)
    graph, weights = nnx.split(model)
    found = call.lower(graph, weights, cache, ids, valid).compile().memory_analysis()
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    return ProgramBytes(found.argument_size_in_bytes, found.temp_size_in_bytes + made)


@pytest.mark.parametrize("quant", [None, "int8", "int4:8"])
def test_programs_are_those_of_a_loaded_model(quant: str | None) -> None:
    mesh = "fsdp=2,tensor=4"
    model, _ = loaded(mesh, "float32", "float32")
    assert model.sharding is not None
    wide = jnp.dtype("float32")
    prefill, step = passes(
        model.config,
        model.sharding,
        rows=ROWS,
        slots=SLOTS,
        chunk=CHUNK,
        dtype=wide,
        cache_dtype=wide,
        platform="cpu",
        quant=checked_quant(quant, model.config),
    )
    assert prefill == lowered_with_values(mesh, CHUNK, quant)
    assert step == lowered_with_values(mesh, 1, quant)
    # Of other calls they are others'.
    assert prefill.temporaries > step.temporaries > 0
    # What the compiler is handed is what is counted: weights, cache, ids and which are real.
    share = planned(mesh, "float32", "float32", quant)
    assert step.arguments == share.weights + share.cache + ROWS * (4 + 1)
