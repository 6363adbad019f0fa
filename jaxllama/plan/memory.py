"""What of a model and its cache lies on a device, and what of it a pass reads; all of it exact.

Known from shapes and the rules of `jaxllama.sharding`: no device is needed, and nothing is made.

Shapes: B rows, S slots, N query heads, H head dim, L layers, D model dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh

from jaxllama.cache import KVCache
from jaxllama.config import LlamaConfig
from jaxllama.forms import Path
from jaxllama.model import Llama
from jaxllama.plan.backend import running_on
from jaxllama.quantisation.choice import QuantScheme
from jaxllama.sharding import AXES, ModelSharding
from jaxllama.sharding.mesh import Sizes
from jaxllama.sharding.rules import CACHE_ROWS, CACHE_STACKED


@dataclass(frozen=True)
class DeviceShare:
    """One device's part of a model and its work; every device has as much.

    Attributes:
        weights: bytes held.
        cache: bytes held: keys and values, and what stands in the slots.
        weights_read: bytes of weights that a pass multiplies by, once they are put together along
            `fsdp`; of the embedding a token reads one row, which is not counted.
        cache_read: bytes of keys and values that a step reads when the cache is full.
        rows: of the batch.
        step_flops: operations of a step with a full cache, a multiplication and an addition two.
        prefill_flops: of a prompt as long as the cache.
    """

    weights: int
    cache: int
    weights_read: int
    cache_read: int
    rows: int
    step_flops: int
    prefill_flops: int


def abstract_sharding(config: LlamaConfig, sizes: Sizes) -> ModelSharding:
    """Return where a model's arrays would lie on a mesh without devices."""
    return ModelSharding(AbstractMesh(tuple(sizes[name] for name in AXES), AXES), config)


@cache
def parameters(config: LlamaConfig, dtype: np.dtype) -> dict[Path, jax.ShapeDtypeStruct]:
    """Return shapes of a stacked model's parameters."""
    state = nnx.state(
        nnx.eval_shape(lambda: Llama(config, dtype=dtype, form="stacked", rngs=nnx.Rngs(0))),
        nnx.Param,
    )
    return {path: held.get_value() for path, held in nnx.to_flat_state(state)}


def abstract_cache(
    config: LlamaConfig, rows: int, slots: int, dtype: np.dtype, sharding: ModelSharding
) -> KVCache:
    """Return shapes of a cache, each with its place on the mesh, as `KVCache.empty` makes it.

    Args:
        config: the model's.
        rows: B.
        slots: S.
        dtype: of keys and values.
        sharding: where they lie.
    """
    with running_on("gpu"):  # this machine's memory need not hold it
        shapes = jax.eval_shape(lambda: KVCache.empty(config, rows, slots, dtype))

    names = {"k": CACHE_STACKED, "v": CACHE_STACKED}
    names |= {"positions": CACHE_ROWS, "segments": CACHE_ROWS}

    def placed(path: tuple[Any, ...], one: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = sharding.of(names.get(path[0].name, ()), one.shape)
        return jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(placed, shapes)


def nbytes_on_device(tree: Any) -> int:
    """Return what each device has of shapes that know their places, in bytes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def part_bytes(
    path: Path, one: jax.ShapeDtypeStruct, sharding: ModelSharding, how: QuantScheme | None
) -> int:
    """Return what a device has of a parameter, in bytes.

    Args:
        path: as in `nnx.to_flat_state`.
        one: the parameter's shape, and its dtype in floats.
        sharding: where it lies.
        how: it is held in fewer bits, if so.
    """
    names = sharding.names_of(path, len(one.shape))
    if how is not None and how.parts(one.shape[-1], sharding.parts(names, one.shape)) == 1:
        names = (*names[:-1], None)
    part = sharding.of(names, one.shape).shard_shape(one.shape)
    return math.prod(part) * one.dtype.itemsize if how is None else how.nbytes(part)


def device_share(
    config: LlamaConfig,
    sizes: Sizes,
    *,
    rows: int,
    slots: int,
    dtype: np.dtype,
    cache_dtype: np.dtype,
    quant: QuantScheme | None = None,
) -> DeviceShare:
    """Return what each device of a mesh has.

    Args:
        config: the model's.
        sizes: devices along each axis.
        rows: B of the batch.
        slots: S of the cache, in tokens a row.
        dtype: of weights that are not quantised.
        cache_dtype: of keys and values.
        quant: how products are held, if in fewer bits.
    """
    held = abstract_sharding(config, sizes)
    # Where a layer runs its weights are whole along `fsdp`.
    run = abstract_sharding(config, {**sizes, "fsdp": 1})
    head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    weights = weights_read = token_products = head_products = 0
    for path, one in parameters(config, dtype).items():
        how = None if quant is None else quant.of(path, config)
        weights += part_bytes(path, one, held, how)
        if path[0] == head or path[0] != "embed_tokens":
            weights_read += part_bytes(path, one, run, how)
        part = run.of_parameter(path, one.shape).shard_shape(one.shape)
        if path[0] == head:
            head_products = math.prod(part)
        elif str(path[-2]).endswith("_proj"):
            token_products += math.prod(part)
    cache = abstract_cache(config, rows, slots, cache_dtype, held)
    shape = (rows, slots, config.num_attention_heads, config.head_dim)
    own, _, heads, _ = held.of(("batch", None, "heads", None), shape).shard_shape(shape)
    # Scores and weighted values, of every query and key.
    pair = 2 * config.num_hidden_layers * heads * config.head_dim
    return DeviceShare(
        weights=weights,
        cache=nbytes_on_device(cache),
        weights_read=weights_read,
        cache_read=nbytes_on_device((cache.k, cache.v)),
        rows=own,
        step_flops=2 * own * (token_products + head_products + pair * slots),
        # Of each prompt the head's last token alone.
        prefill_flops=2
        * own
        * (token_products * slots + head_products + pair * (slots * (slots + 1) // 2)),
    )
