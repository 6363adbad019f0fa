"""Meshes of devices, as people say them: `tensor=4,data=2`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh

from jaxllama.errors import InputError, argument, join_problems

# Slowest links first: copies of the model talk once a step, parts of a product in every layer.
AXES = ("data", "fsdp", "tensor")

Sizes = dict[str, int]
MeshLike = str | Mapping[str, int] | Mesh


def parse_mesh(given: MeshLike) -> Sizes:
    """Return how many devices lie along each axis, in the order of `AXES`.

    >>> parse_mesh("tensor=4,data=2")
    {'data': 2, 'fsdp': 1, 'tensor': 4}

    Args:
        given: text, sizes by name, or a mesh of JAX's. Axes that are not named have size 1.

    Raises:
        InputError: an axis of another name, one named twice, or a size that is no whole number
            above 0; all of them in one message.
    """
    if isinstance(given, Mesh):
        pairs = [(str(name), str(size)) for name, size in given.shape.items()]
    elif isinstance(given, str):
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        pairs = [(name.strip(), size.strip()) for name, _, size in parts]
    elif isinstance(given, Mapping):
        pairs = [(str(name), str(size)) for name, size in given.items()]
    else:
        raise InputError(
            f"{argument('mesh')}: {type(given).__name__}, expected text such as tensor=4,data=2, "
            "sizes by name, or a mesh of JAX's with devices"
        )
    sizes, problems = dict.fromkeys(AXES, 1), []
    for place, (name, size) in enumerate(pairs):
        if name not in AXES:
            problems.append(f"axis {name!r}: expected {', '.join(AXES)}")
        elif name in dict(pairs[:place]):
            problems.append(f"axis {name} is named twice")
        elif not (size.isascii() and size.isdigit() and len(size) < 10 and int(size)):
            problems.append(f"{name}={size:.20}: expected a whole number above 0")
        else:
            sizes[name] = int(size)
    if not pairs:
        problems.append("nothing is named; expected sizes of axes, such as tensor=4,data=2")
    if problems:
        raise InputError(join_problems(argument("mesh"), problems))
    return sizes


def mesh_in_words(sizes: Mapping[str, int]) -> str:
    """Return a mesh as it is typed, axes of one device left out.

    >>> mesh_in_words({"data": 2, "fsdp": 1, "tensor": 4})
    'data=2,tensor=4'
    """
    said = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    return ",".join(said) or f"{AXES[-1]}=1"


def device_problem(sizes: Sizes, *, may_grow: bool = True) -> str | None:
    """Return why there are not the devices of a mesh; None if there are.

    Args:
        sizes: devices along each axis.
        may_grow: whether more devices would help: not of a mesh that cannot be for another reason.
    """
    wanted, there = math.prod(sizes.values()), jax.device_count()
    said = f"takes {wanted} devices, JAX sees {there}"
    if wanted > there:
        backend = jax.default_backend()
        remedy = "; give a smaller mesh"
        if backend == "cpu":
            remedy += f", or set JAX_NUM_CPU_DEVICES={wanted}, which makes as many out of one"
        return f"{said} ({backend}){remedy if may_grow else ''}"
    if (processes := jax.process_count()) > 1 and wanted < there:
        return (
            f"{said} in {processes} processes; the mesh has to take all of them, or a process "
            "would wait for one that has nothing to do"
        )
    return None


def make_mesh(given: MeshLike) -> Mesh:
    """Return a mesh of devices that are there, with all of `AXES`.

    Args:
        given: as for `parse_mesh`; a mesh keeps its devices.

    Raises:
        InputError: as for `parse_mesh`; more devices than there are; or, where there are several
            processes, not all devices of all of them.
    """
    sizes = parse_mesh(given)
    if (problem := device_problem(sizes)) is not None:
        raise InputError(f"{argument('mesh', mesh_in_words(sizes))}: {problem}")
    wanted = math.prod(sizes.values())
    if isinstance(given, Mesh):
        order = [list(given.axis_names).index(name) for name in AXES if name in given.axis_names]
        laid = given.devices.transpose(order).reshape(tuple(sizes.values()))
        return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    kinds = (AxisType.Auto,) * len(AXES)
    devices = jax.devices()[:wanted] if wanted < jax.device_count() else None
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)
