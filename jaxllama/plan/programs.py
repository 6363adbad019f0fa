"""What the compiler says of a model's passes: compiled from shapes alone, nothing allocated.

Shapes: B rows, S slots of the cache, T tokens of a call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxllama.cache import KVCache
from jaxllama.config import LlamaConfig
from jaxllama.generate import feed
from jaxllama.model import Llama
from jaxllama.plan.backend import running_on
from jaxllama.plan.memory import abstract_cache
from jaxllama.quantisation.arrays import hollow
from jaxllama.quantisation.choice import QuantScheme
from jaxllama.sharding import ModelSharding
from jaxllama.sharding.parameters import on_leaves
from jaxllama.sharding.rules import Names

# A TPU's compiler refuses what is more than the chip has, and says how much it is.
_TOO_MUCH = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class ProgramBytes:
    """What one call takes on each device, in bytes.

    Attributes:
        arguments: weights, cache and tokens.
        temporaries: what is made on the way and given back, and the logits.
    """

    arguments: int
    temporaries: int


def abstract_model(
    config: LlamaConfig, dtype: np.dtype, sharding: ModelSharding, quant: QuantScheme | None = None
) -> tuple[nnx.GraphDef[Llama], Any]:
    """Return a stacked model without values, as `nnx.split` does; each array knows its place.

    Args:
        config: the model's.
        dtype: of its arithmetic, and of weights that are not quantised.
        sharding: where its arrays lie.
        quant: how products are held, if in fewer bits.
    """
    graph, state = nnx.split(
        nnx.eval_shape(
            lambda: Llama(config, dtype=dtype, sharding=sharding, rngs=nnx.Rngs(0), form="stacked")
        )
    )

    def described(array: Any, names: Names) -> jax.ShapeDtypeStruct:
        where = sharding.of(names, array.shape)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

    placed = {}
    for path, held in nnx.to_flat_state(state):
        array = held.get_value()
        names = sharding.names_of(path, len(array.shape))
        if (how := None if quant is None else quant.of(path, config)) is not None:
            parts = how.parts(array.shape[-1], sharding.parts(names, array.shape))
            array = how.empty(array.shape, parts, hollow)
        placed[path] = held.replace(on_leaves(described, array, names))
    return graph, nnx.from_flat_state(placed)


@partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache",))
def call(graph: nnx.GraphDef[Llama], weights: Any, cache: KVCache, tokens: Any, valid: Any) -> Any:
    """Run tokens through a model and its cache, as `generate` does within its loop."""
    return feed(nnx.merge(graph, weights), cache, tokens, valid)


def program_bytes(
    graph: nnx.GraphDef[Llama],
    weights: Any,
    cache: KVCache,
    tokens: int,
    sharding: ModelSharding,
    platform: str,
) -> ProgramBytes:
    """Compile one call, and return what the compiler says of it.

    Args:
        graph: of the model.
        weights: of the model; shapes will do.
        cache: with room for the tokens; shapes will do.
        tokens: T of each row; 1 is a step of decoding.
        sharding: the model's.
        platform: whose ways the model takes.
    """
    shape, whole = (*cache.lengths.shape, tokens), sharding.of((), ())
    ids, valid = (
        jax.ShapeDtypeStruct(shape, kind, sharding=whole) for kind in (np.int32, np.bool_)
    )
    with running_on(platform):
        lowered = call.lower(graph, weights, cache, ids, valid)
    try:
        found = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if (said := _TOO_MUCH.search(str(error))) is None:
            raise
        return ProgramBytes(0, int(float(said[1]) * _UNITS[said[2]]))
    assert found is not None
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    return ProgramBytes(found.argument_size_in_bytes, found.temp_size_in_bytes + made)


def passes(
    config: LlamaConfig,
    sharding: ModelSharding,
    *,
    rows: int,
    slots: int,
    chunk: int,
    dtype: np.dtype,
    cache_dtype: np.dtype,
    platform: str,
    quant: QuantScheme | None = None,
) -> tuple[ProgramBytes, ProgramBytes]:
    """Return what a call of prefill and a step of decoding take on each device.

    Args:
        config: the model's.
        sharding: with devices, which need not be there.
        rows: B.
        slots: S.
        chunk: T of the call of prefill.
        dtype: of weights and arithmetic.
        cache_dtype: of keys and values.
        platform: whose ways the model takes.
        quant: how products are held, if in fewer bits.
    """
    with running_on(platform):
        graph, weights = abstract_model(config, dtype, sharding, quant)
    cache = abstract_cache(config, rows, slots, cache_dtype, sharding)
    prefill, step = (
        program_bytes(graph, weights, cache, tokens, sharding, platform) for tokens in (chunk, 1)
    )
    return prefill, step
