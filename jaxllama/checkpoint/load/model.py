"""Check a checkpoint against its configuration, then fill a model with it."""

from __future__ import annotations

import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import DTypeLike

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import (
    all_value_problems,
    head_problems,
    raise_problems,
    structure_problems,
)
from jaxllama.checkpoint.from_model import remember
from jaxllama.checkpoint.load.arrays import ArrayReader, checked
from jaxllama.checkpoint.manifest import check_manifest
from jaxllama.checkpoint.names import ENTRIES, TABLE
from jaxllama.config import LlamaConfig
from jaxllama.dtypes import checked_float, parse
from jaxllama.errors import InputError
from jaxllama.forms import Form, Path, parts_of
from jaxllama.model import Llama
from jaxllama.quantisation import checked_quant
from jaxllama.sharding import MeshLike, ModelSharding, model_sharding


def load_model(
    checkpoint: Checkpoint | pathlib.Path | str,
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike | None = None,
    form: Form = "stacked",
    quant: str | None = None,
    mesh: MeshLike | ModelSharding | None = None,
    check_digests: bool = False,
) -> Llama:
    """Build the model of a checkpoint.

    The weights go straight to device arrays, one array at a time: the host holds at most one of
    them, and one tensor of the file, beyond what the device does.

    Args:
        checkpoint: opened, or what `open_checkpoint` takes.
        dtype: of activations and arithmetic.
        param_dtype: of the weights; `dtype` if not given.
        form: how layers are held, see `jaxllama.forms`.
        quant: `int8`, `int4` or `int4:GROUP`: of the weights of products, see
            `jaxllama.quantisation`; they are rounded as they are read.
        mesh: devices to lay it out on, see `jaxllama.sharding`; each one's parts are read alone,
            but for weights that are quantised: of them a device's rows are read whole, for they
            have one scale each.
        check_digests: whether to compare all weights with the manifest written by `convert`.

    Raises:
        CheckpointError: everything that does not fit, in one message; no model is built then.
        InputError: float64 was asked for and JAX has 64-bit types switched off, there is no such
            quantisation of this model, or a mesh that is not there or does not divide it.
    """
    from jaxllama.checkpoint.open import open_checkpoint

    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    arithmetic = checked_float(dtype)
    target = arithmetic if param_dtype is None else checked_float(param_dtype, "param_dtype")
    quantisation = checked_quant(quant, checkpoint.config)
    sharding = None if mesh is None else model_sharding(mesh, checkpoint.config, form)
    if problems := structure_problems(checkpoint):
        raise_problems(checkpoint, problems + all_value_problems(checkpoint))

    if check_digests:
        check_manifest(checkpoint)

    def build() -> Llama:
        return Llama(
            checkpoint.config,
            dtype=arithmetic,
            param_dtype=target,
            form=form,
            sharding=sharding,
            rngs=nnx.Rngs(0),
        )

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    problems = head_problems(checkpoint)
    for path in sorted(flat, key=lambda path: _place(path, checkpoint.config)):
        shape = flat[path].shape
        how = None if quantisation is None else quantisation.of(path, checkpoint.config)
        # Rounded once, of what the file has.
        array = ArrayReader(
            checkpoint, path, shape, target if how is None else np.dtype(np.float32), how
        )
        made = jax.device_put(array.whole()) if sharding is None else array.on_mesh(sharding)
        problems += array.problems
        if not problems:
            flat[path] = flat[path].replace(made)
    raise_problems(checkpoint, problems)
    model: Llama = nnx.merge(graph, nnx.from_flat_state(flat))
    model.quant = None if quantisation is None else quantisation.name
    remember(model, checkpoint)
    return model


def _place(path: Path, config: LlamaConfig) -> tuple[int, int]:
    """Return where an array stands among all: by what it holds, and its layer."""
    part = next(parts_of(path, config))
    return list(ENTRIES).index(part.path), part.layer or 0


Part = int | Literal["embed", "head"]


def load_part(
    checkpoint: Checkpoint, part: Part, *, dtype: DTypeLike, param_dtype: DTypeLike
) -> Llama:
    """Build a model of one layer that holds one part's weights; its other weights are empty.

    Args:
        checkpoint: opened; its structure is taken to have been checked (`structure_problems`).
        part: `embed`, a layer's number, or `head`. What can be run of the model is its `embed`,
            its `layer(0)`, or its `head`.
        dtype: of activations and arithmetic.
        param_dtype: of the weights.

    Raises:
        CheckpointError: values that are NaN, infinite or too large for `param_dtype`.
        InputError: no such layer.
    """
    config, target = checkpoint.config, parse(param_dtype, "param_dtype")
    if isinstance(part, int) and not 0 <= part < config.num_hidden_layers:
        raise InputError(f"layer {part}: expected 0 to {config.num_hidden_layers - 1}")
    one = config.replace(num_hidden_layers=1)

    def build() -> Llama:
        return Llama(one, dtype=parse(dtype), param_dtype=target, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    wanted = {"embed": ("embed_tokens",), "head": ("norm", "lm_head")}.get(str(part), ("layers",))
    if part == "head" and config.tie_word_embeddings:
        wanted = ("norm", "embed_tokens")
    problems: list[str] = []
    for entry in TABLE:
        if entry.path not in flat:
            continue
        values = jnp.zeros((0,), target)
        if entry.path[0] in wanted:
            name = entry.name("hf", part if isinstance(part, int) else None)
            read = checked(name, checkpoint.read(name), target, problems)
            values = jax.device_put(read[None] if entry.layered else read)
        flat[entry.path] = flat[entry.path].replace(values)
    raise_problems(checkpoint, problems)
    return nnx.merge(graph, nnx.from_flat_state(flat))
