"""Where the arrays of one model lie on a mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument, join_problems
from jaxllama.forms import Form, Path, parts_of
from jaxllama.sharding.mesh import (
    AXES,
    MeshLike,
    Sizes,
    device_problem,
    make_mesh,
    mesh_in_words,
    parse_mesh,
)
from jaxllama.sharding.rules import PARAMETERS, RULES, Names


@dataclass(frozen=True)
class ModelSharding:
    """Where the arrays of a model lie.

    Attributes:
        mesh: with all of `AXES`; without devices where shapes alone are asked for.
        config: the model's.
    """

    mesh: Mesh | AbstractMesh
    config: LlamaConfig

    @property
    def sizes(self) -> Sizes:
        """Devices along each axis."""
        return {name: self.mesh.shape[name] for name in AXES}

    @property
    def notes(self) -> list[str]:
        """What is whole on every device though there is an axis along which to cut it."""
        whole, tensor = whole_heads(self.sizes, self.config), self.sizes["tensor"]
        N, K = self.config.num_attention_heads, self.config.num_key_value_heads
        if "heads" in whole:
            return [
                f"tensor={tensor} does not divide {N} query heads over {K} kv heads: attention is "
                "whole on every device along it"
            ]
        if whole:
            return [f"tensor={tensor} is more than {K} kv heads: each device along it has all"]
        return []

    def spec(self, names: Names, shape: tuple[int, ...]) -> PartitionSpec:
        """Return the axes of the mesh along which an array is cut.

        Args:
            names: of its axes; the last ones may be left out.
            shape: of the array. Rows are cut along as many of their axes as divide them: how many
                there are is the caller's affair.
        """
        cut = [self._along(name, length) for name, length in zip(names, shape, strict=False)]
        while cut and cut[-1] is None:  # as JAX spells the layouts of what a program returns
            cut.pop()
        return PartitionSpec(*cut)

    def _along(self, name: str | None, length: int) -> tuple[str, ...] | None:
        if name is None or name in whole_heads(self.sizes, self.config):
            return None
        along = [axis for axis in RULES[name] if self.sizes[axis] > 1]
        while along and length % math.prod(self.sizes[axis] for axis in along):
            along.pop()
        return tuple(along) or None

    def parts(self, names: Names, shape: tuple[int, ...]) -> int:
        """Return into how many parts an array's last axis is cut, given as for `spec`."""
        along = self._along(names[-1], shape[-1]) if len(names) == len(shape) else None
        return math.prod(self.sizes[axis] for axis in along or ())

    def of(self, names: Names, shape: tuple[int, ...]) -> NamedSharding:
        """Return the sharding of an array, given as for `spec`."""
        return NamedSharding(self.mesh, self.spec(names, shape))

    def names_of(self, path: Path, axes: int) -> Names:
        """Return the names of a parameter's axes, whatever the model's form.

        Args:
            path: as in `nnx.to_flat_state`.
            axes: how many it has; a stack of layers has one before its own.
        """
        part = next(parts_of(path, self.config))
        names = PARAMETERS.get(part.path[-2], ())
        return (None,) * (axes - len(names)) + names

    def of_parameter(self, path: Path, shape: tuple[int, ...]) -> NamedSharding:
        """Return the sharding of a parameter that is one array, given as for `names_of`."""
        return self.of(self.names_of(path, len(shape)), shape)

    def keep(self, value: Array, names: Names) -> Array:
        """Return a value of a program, which the compiler is told to keep on the mesh so."""
        return jax.lax.with_sharding_constraint(value, self.of(names, value.shape))


def whole_heads(sizes: Sizes, config: LlamaConfig) -> frozenset[str]:
    """Return which of `heads` and `kv_heads` are whole on every device.

    Queries are cut where every device gets as many, of one kv head or of whole ones; keys and
    values where every device gets as many of these.
    """
    tensor, K = sizes["tensor"], config.num_key_value_heads
    if config.num_attention_heads % tensor or (K % tensor and tensor % K):
        return frozenset({"heads", "kv_heads"})
    return frozenset({"kv_heads"} if K % tensor else ())


def mesh_problems(sizes: Sizes, config: LlamaConfig, form: Form | None) -> list[str]:
    """Return why a model cannot lie on a mesh; nothing if it can."""
    problems = [
        f"{field} {length} does not divide by {axis}={sizes[axis]}"
        for axis, field, length in (
            ("fsdp", "hidden_size", config.hidden_size),
            ("tensor", "intermediate_size", config.intermediate_size),
            ("tensor", "vocab_size", config.vocab_size),
        )
        if length % sizes[axis]
    ]
    if form == "fused" and sizes["tensor"] > 1:
        problems.append(
            f"form {form}: products that are one array cannot be cut by heads along "
            f"tensor={sizes['tensor']}; choose stacked or unrolled"
        )
    return problems


def model_sharding(
    given: MeshLike | ModelSharding, config: LlamaConfig, form: Form | None = None
) -> ModelSharding:
    """Return where a model's arrays lie on a mesh.

    Args:
        given: as for `make_mesh`.
        config: the model's.
        form: how it holds its layers, if that is known.

    Raises:
        InputError: as for `make_mesh`, and a mesh that does not divide the model, in one message;
            before anything is loaded.
    """
    if isinstance(given, ModelSharding):
        return given
    sizes = parse_mesh(given)
    if problems := mesh_problems(sizes, config, form):
        lacking = device_problem(sizes, may_grow=False)
        problems += [] if lacking is None else [lacking]
        raise InputError(join_problems(argument("mesh", mesh_in_words(sizes)), problems))
    return ModelSharding(make_mesh(given), config)


def place(tree: Any, sharding: ModelSharding, names: Names) -> Any:
    """Return arrays, each laid out on the mesh by the same names of axes."""
    return jax.tree.map(lambda x: jax.device_put(x, sharding.of(names, x.shape)), tree)
