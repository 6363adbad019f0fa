"""How many bytes a model's weights and cache take, known from its configuration alone.

Shapes: L layers, N query heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import parse
from jaxllama.quantisation.choice import QuantScheme, checked_quant


def weights_bytes(
    config: LlamaConfig, *, dtype: DTypeLike, quant: str | QuantScheme | None = None
) -> int:
    """Return what a model's parameters take, in bytes.

    Args:
        config: the model's.
        dtype: of what is held in floats.
        quant: `int8`, `int4`, `int4:GROUP`, or None.

    Raises:
        InputError: no such dtype or quantisation, or one that does not fit the model.
    """
    chosen, each = checked_quant(quant, config), parse(dtype).itemsize
    total = 0
    for path, shape in _parameters(config):
        how = None if chosen is None else chosen.of(path, config)
        total += each * math.prod(shape) if how is None else how.nbytes(shape)
    return total


def cache_bytes(config: LlamaConfig, batch: int, capacity: int, dtype: np.dtype) -> int:
    """Return what a cache's keys and values take, in bytes.

    Args:
        config: the model's.
        batch: rows.
        capacity: slots a row, in tokens.
        dtype: as `checked_cache_dtype` returns it; int8 has a float32 scale for each vector.
    """
    vectors = 2 * config.num_hidden_layers * batch * capacity * config.num_key_value_heads
    return vectors * (config.head_dim * dtype.itemsize + 4 * (dtype == np.int8))


def step_bytes(config: LlamaConfig, dtype: DTypeLike) -> int:
    """Return the bytes of weights that one step of decoding has to read, for however many rows.

    Every matrix once, the head's too. Norms, the embedding's rows and the cache are left out: a
    thousandth, and in short contexts some hundredths.

    Args:
        config: the model's numbers.
        dtype: of the weights.
    """
    table = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    read = {
        path: shape
        for path, shape in _parameters(config)
        if path[0] == table or path[-2].endswith("_proj")
    }
    return sum(map(math.prod, read.values())) * parse(dtype).itemsize


def _parameters(config: LlamaConfig) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Yield paths and shapes of a stacked model's parameters."""
    L, D, F, V = (
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
    )
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    yield ("embed_tokens", "weight"), (V, D)
    yield ("norm", "weight"), (D,)
    if not config.tie_word_embeddings:
        yield ("lm_head", "weight"), (V, D)
    products = {
        "self_attn": {"q": (queries, D), "k": (keys, D), "v": (keys, D), "o": (D, queries)},
        "mlp": {"gate": (F, D), "up": (F, D), "down": (D, F)},
    }
    for module, shapes in products.items():
        for name, shape in shapes.items():
            yield ("layers", module, f"{name}_proj", "weight"), (L, *shape)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield ("layers", norm, "weight"), (L, D)
