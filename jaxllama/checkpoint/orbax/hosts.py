"""A model that lies on devices of several hosts, saved by all of them at once."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
from numpy.typing import DTypeLike

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.convert import Conversion
from jaxllama.checkpoint.from_model import sharded_tensors
from jaxllama.checkpoint.orbax.write import save_sharded
from jaxllama.dtypes import parse
from jaxllama.errors import CheckpointError, join_problems
from jaxllama.model import Llama
from jaxllama.sharding.hosts import host_array


def save_from_hosts(
    model: Llama, target: Path, beside: Checkpoint, dtype: DTypeLike | None = None
) -> Conversion:
    """Write a model as an Orbax directory on files that all hosts see; each calls it.

    Args:
        model: the model.
        target: directory that is to appear.
        beside: has its configuration and tokenizer.
        dtype: of the weights as written; each parameter's own if not given.

    Returns:
        What was done, without digests and losses: no host has seen a whole tensor.

    Raises:
        CheckpointError: a weight is NaN or infinite, in the dtype that is written; the target
            exists or cannot be written.
    """
    began, tensors = time.perf_counter(), sharded_tensors(model)
    if dtype is not None:
        tensors = {name: one.astype(parse(dtype)) for name, one in tensors.items()}
    problems = [
        f"{name}: has values that are NaN or infinite in {one.dtype}"
        for name, one in tensors.items()
        if not host_array(_all_finite(one))
    ]
    if problems:
        raise CheckpointError(join_problems("the model", problems))
    save_sharded(target, tensors, beside)
    nbytes = sum(one.nbytes for one in tensors.values())
    seconds = time.perf_counter() - began
    return Conversion(target, "orbax", nbytes, seconds, {}, {}, {}, 0, beside.notes)


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
