"""KerasHub's Llama 3 on Keras' JAX backend (`KERAS_BACKEND=jax`).

Cannot show: scores and weights of attention, which `jax.nn.dot_product_attention` keeps to
itself; the table of the rotation; gradients, since its layers are no NNX modules. Counts
positions in columns and has no mask but the causal one, so no left padding, packed rows or
positions of one's own.
"""

from __future__ import annotations

import os
from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.dtypes import parse
from parity.inputs import Inputs
from parity.subjects import Calls, Takes, Tap, from_nnx
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import layer_names
from parity.subjects.base import Subject

REQUIREMENT = "keras-hub==0.32.0"
SCENARIOS = ("causal", "right_padded")
LAYER = "backbone.transformer_layers.{i}"
RENAMED = {
    "self_attn.": "_self_attention_layer._", "q_proj": "query_dense", "k_proj": "key_dense",
    "v_proj": "value_dense", "o_proj": "output_dense", "mlp.": "_feedforward_",
    "gate_proj": "gate_dense", "up_proj": "intermediate_dense", "down_proj": "output_dense",
    "input_layernorm": "_self_attention_layernorm",
    "post_attention_layernorm": "_feedforward_layernorm",
}  # fmt: skip
ROPE = f"{LAYER}._self_attention_layer.rotary_embedding_layer"
NAMES: dict[str, Any] = {
    **layer_names(LAYER, packed=False, renamed=RENAMED), LAYER: Tap("layers.{i}.output", item=0),
    "backbone.token_embedding": Calls("embed", "logits"), "backbone.layer_norm": "norm",
    ROPE: Calls("layers.{i}.q_rope", "layers.{i}.k_rope"),
    "keras.ops.slice_update()": Calls("cache.{i}.k", "cache.{i}.v"),
}  # fmt: skip


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return KerasHub's model, loaded by `from_preset`."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from keras_hub.models import Llama3CausalLM

    with hf_directory(checkpoint) as directory:
        model = Llama3CausalLM.from_preset(
            str(directory), preprocessor=None, dtype=parse(dtype).name
        )
    return from_nnx(
        model, config=checkpoint.config, takes=Takes(scenarios=SCENARIOS),
        dtype=dtype, internal_dtype="f32", name="keras-hub",
        call=lambda model, i: decode(model, i, 0, i.tokens.shape[1], None)[0],
        decode=decode, names=NAMES,
    )  # fmt: skip


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through a cache with a slot for each, as `generate` does, prompts too."""
    import jax.numpy as jnp

    if cache is None:
        b = model.backbone
        rows, columns = i.tokens.shape
        head = b.hidden_dim // b.num_query_heads
        shape = (rows, b.num_layers, 2, columns, b.num_key_value_heads, head)
        cache = jnp.zeros(shape, model.compute_dtype)
    result = model.call_with_cache(i.tokens[:, start:stop], cache, start)
    return result, result[2]
