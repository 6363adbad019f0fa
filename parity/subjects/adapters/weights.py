"""A checkpoint's weights under another implementation's names, in its layouts, in its module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from jaxllama.dtypes import parse
from jaxllama.errors import InputError, join_problems
from parity.subjects.adapters.layouts import native, stacked, weight_sizes
from parity.subjects.adapters.names import Parameters, parameters_of
from parity.subjects.base import CheckpointLike

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def weights_for(
    parameters: Parameters, checkpoint: CheckpointLike, dtype: DTypeLike | None = None
) -> dict[str, np.ndarray]:
    """Return a checkpoint's weights as another implementation has them.

    Args:
        parameters: from its own names to canonical ones and their layouts, as `from_nnx` and
            `from_torch` take them. A tied checkpoint's head is its embedding.
        checkpoint: whose weights.
        dtype: of what is returned; each tensor's own if None.

    Returns:
        Arrays by own names, `{i}` filled in.

    Raises:
        InputError: names that are not canonical, tensors that the checkpoint lacks, and those of it
            that nothing names: all at once.
    """
    taps = parameters_of(parameters)
    sizes, layers = weight_sizes(checkpoint.config), checkpoint.config.num_hidden_layers
    wanted = None if dtype is None else parse(dtype)
    read, problems = set(), []

    def tensor(name: str) -> np.ndarray | None:
        if name == HEAD and name not in checkpoint.tensors and EMBEDDING in checkpoint.tensors:
            name = EMBEDDING
        read.add(name)
        if name not in checkpoint.tensors:
            problems.append(f"{name}: the checkpoint has no such tensor")
            return None
        array = checkpoint.read(name)
        return array if wanted is None else array.astype(wanted)

    found: dict[str, np.ndarray] = {}
    for own, tap in taps.items():
        names = [tap.name.replace("{i}", str(i)) for i in range(layers if "{i}" in tap.name else 1)]
        arrays = [tensor(name) for name in names]
        held = [one for one in arrays if one is not None]
        if len(held) < len(arrays):
            continue
        if "L" in (tap.axes or ""):
            found[own] = stacked(held, tap, sizes)
        else:
            for i, array in enumerate(held):
                found[own.replace("{i}", str(i))] = np.ascontiguousarray(native(array, tap, sizes))
    problems += [f"{name}: nothing names it" for name in checkpoint.tensors if name not in read]
    if problems:
        raise InputError(join_problems("weights_for", problems))
    return found


def load_into(module: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Put weights into a PyTorch or NNX module, all or none; buffers stay as they are.

    Args:
        module: whose parameters have their final shapes and dtypes.
        weights: by the module's own names, as `weights_for` returns them.

    Returns:
        The module.

    Raises:
        InputError: names that only one side has, other shapes, dtypes that would round: all at
            once.
    """
    held, put = _parameters(module)
    given = {held[name].array for name in weights if name in held}
    problems = [
        f"{name}: the weights lack it" for name, one in held.items() if one.array not in given
    ]
    for name, array in weights.items():
        if name not in held:
            problems.append(f"{name}: {type(module).__name__} has no such parameter")
            continue
        shape, dtype = held[name].shape, held[name].dtype
        if array.shape != shape:
            problems.append(f"{name}: shape {array.shape}, the module's is {shape}")
        elif np.promote_types(array.dtype, dtype) != dtype:
            problems.append(f"{name}: {array.dtype.name} would be rounded to {dtype.name}")
    if problems:
        raise InputError(join_problems("load_into", problems))
    put({name: array.astype(held[name].dtype) for name, array in weights.items()})
    return module


@dataclass(frozen=True)
class _Held:
    """A parameter of a module; `array` tells those that are one from others."""

    shape: tuple[int, ...]
    dtype: np.dtype
    array: int


Put = Callable[[Mapping[str, np.ndarray]], None]


def _parameters(module: Any) -> tuple[dict[str, _Held], Put]:
    """Return a module's parameters by name, and what sets them."""
    if hasattr(module, "named_parameters"):
        return _of_torch(module)
    return _of_nnx(module)


def _of_torch(module: Any) -> tuple[dict[str, _Held], Put]:
    import torch

    from parity.subjects.torch.arrays import to_numpy, to_torch

    # A tied head's tensor has two names.
    tensors = dict(module.named_parameters(remove_duplicate=False))
    held = {
        name: _Held(tuple(one.shape), to_numpy(one.detach()).dtype, id(one))
        for name, one in tensors.items()
    }

    def put(weights: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, array in weights.items():
                tensors[name].copy_(to_torch(array))

    return held, put


def _of_nnx(module: Any) -> tuple[dict[str, _Held], Put]:
    import jax
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise InputError(
            f"load_into: {type(module).__name__} is neither a PyTorch nor an NNX module"
        )
    state = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    paths = {".".join(map(str, path)): path for path in state}
    held = {}
    for name, path in paths.items():
        value = state[path][...]
        held[name] = _Held(tuple(value.shape), np.dtype(value.dtype), id(value))

    def put(weights: Mapping[str, np.ndarray]) -> None:
        with jax.enable_x64(True):  # for float64 is none without
            for name, array in weights.items():
                value = jax.device_put(array, state[paths[name]][...].sharding)
                state[paths[name]] = state[paths[name]].replace(value)
        nnx.update(module, nnx.from_flat_state(state))

    return held, put
