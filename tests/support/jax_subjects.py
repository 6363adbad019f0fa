"""Other ways to run this project's own model: on a mesh of devices, and with quantised weights.

Shapes: L layers, `out` and `in` a product's features; B batch, T tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllama.model import Llama
from parity.subjects.jaxllama.subject import JaxLlama

# Of a layer's products: split by what comes out (heads, mlp features), and by what goes in.
BY_COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
BY_ROWS = ("o_proj", "down_proj")


def _products(model: Llama, names: tuple[str, ...]) -> list[tuple[Any, str]]:
    parts = (model.layers.self_attn, model.layers.mlp)
    return [(part, name) for name in names for part in parts if hasattr(part, name)]


class SummedOverMesh(nnx.Module):
    """A product of which every device has a part of the sum.

    Args:
        weight: [L out in], `in` split over the mesh.
        mesh: of one axis, `model`.
        lost: a device whose part is not added; -1 for none.
    """

    def __init__(self, weight: jax.Array, mesh: jax.sharding.Mesh, lost: int = -1) -> None:
        self.weight = nnx.Param(weight)
        self.mesh, self.lost = mesh, lost

    def __call__(self, x: jax.Array) -> jax.Array:
        def part(x: jax.Array, weight: jax.Array) -> jax.Array:
            product = jnp.einsum("bti,oi->bto", x, weight.astype(x.dtype))
            here = jax.lax.axis_index("model") != self.lost
            return jax.lax.psum(jnp.where(here, product, jnp.zeros_like(product)), "model")

        specs = PartitionSpec(None, None, "model"), PartitionSpec(None, "model")
        summed = jax.shard_map(part, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec())
        return summed(x, self.weight[...])


def sharded(model: Llama, lane: str, lost: int = -1) -> JaxLlama:
    """Return the model on two devices, its heads and mlp features split between them."""
    subject = JaxLlama(model, lane, name="jaxllama-sharded")
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))

    def placed(value: jax.Array, *axes: str | None) -> jax.Array:
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*axes)))

    graph, state = nnx.split(subject.model)
    subject.model = nnx.merge(graph, jax.tree.map(placed, state))
    for part, name in _products(subject.model, BY_COLUMNS):
        weight = getattr(part, name).weight
        weight[...] = placed(weight[...], None, "model", None)
    for part, name in _products(subject.model, BY_ROWS):
        weight = placed(getattr(part, name).weight[...], None, None, "model")
        setattr(part, name, SummedOverMesh(weight, mesh, lost if name == "o_proj" else -1))
    return subject


def one_part_lost(model: Llama, lane: str) -> JaxLlama:
    """Return the same, but the second device's heads are left out of attention's output."""
    return sharded(model, lane, lost=1)


class Int8Linear(nnx.Module):
    """A product with int8 weights and a scale for each feature that comes out.

    Args:
        weight: [L out in].
    """

    def __init__(self, weight: jax.Array) -> None:
        scale = jnp.abs(weight).max(axis=-1) / 127
        self.weight = nnx.Param(jnp.round(weight / scale[..., None]).astype(jnp.int8))
        self.scale = nnx.Param(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        product = jnp.einsum("bti,oi->bto", x, self.weight[...].astype(x.dtype))
        return product * self.scale[...].astype(x.dtype)[None, None, :]


def quantised(model: Llama, lane: str) -> JaxLlama:
    """Return the model with int8 weights in every layer's products."""
    subject = JaxLlama(model, lane, name="jaxllama-int8")
    for part, name in _products(subject.model, BY_COLUMNS + BY_ROWS):
        setattr(part, name, Int8Linear(getattr(part, name).weight[...]))
    return subject
