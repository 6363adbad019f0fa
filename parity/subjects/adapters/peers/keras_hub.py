"""KerasHub's Llama 3 on Keras' JAX backend (`KERAS_BACKEND=jax`).

Cannot show: scores and weights of attention, which `jax.nn.dot_product_attention` keeps to itself; the
table of the rotation; gradients, since its layers are no NNX modules. Counts positions in columns and has
no mask but the causal one, so no left padding, packed rows or positions of one's own.
"""

from __future__ import annotations

import os
from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.dtypes import parse
from parity.inputs import Inputs
from parity.subjects.adapters.create import from_nnx
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.layouts import Tap
from parity.subjects.adapters.names import Calls
from parity.subjects.base import Subject

REQUIREMENT = "keras-hub==0.32.0"
SCENARIOS = ("causal", "right_padded")
LAYER = "backbone.transformer_layers.{i}"
ATTENTION = f"{LAYER}._self_attention_layer"
NAMES: dict[str, Any] = {
    "backbone.token_embedding": Calls("embed", "logits"),
    f"{LAYER}:input": "layers.{i}.input",
    f"{LAYER}._self_attention_layernorm": "layers.{i}.input_layernorm",
    f"{ATTENTION}._query_dense": "layers.{i}.q_proj",
    f"{ATTENTION}._key_dense": "layers.{i}.k_proj",
    f"{ATTENTION}._value_dense": "layers.{i}.v_proj",
    f"{ATTENTION}.rotary_embedding_layer": Calls("layers.{i}.q_rope", "layers.{i}.k_rope"),
    "keras.ops.slice_update()": Calls("cache.{i}.k", "cache.{i}.v"),
    f"{ATTENTION}._output_dense:input": "layers.{i}.attn_context",
    f"{ATTENTION}._output_dense": "layers.{i}.o_proj",
    f"{LAYER}._feedforward_layernorm:input": "layers.{i}.post_attention",
    f"{LAYER}._feedforward_layernorm": "layers.{i}.post_attention_layernorm",
    f"{LAYER}._feedforward_gate_dense": "layers.{i}.gate_proj",
    f"{LAYER}._feedforward_intermediate_dense": "layers.{i}.up_proj",
    f"{LAYER}._feedforward_output_dense:input": "layers.{i}.mlp_act",
    f"{LAYER}._feedforward_output_dense": "layers.{i}.down_proj",
    LAYER: Tap("layers.{i}.output", item=0),
    "backbone.layer_norm": "norm",
}


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return KerasHub's model, loaded by `from_preset`."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from keras_hub.models import Llama3CausalLM

    with hf_directory(checkpoint) as directory:
        model = Llama3CausalLM.from_preset(
            str(directory), preprocessor=None, dtype=parse(dtype).name
        )
    return from_nnx(
        model, config=checkpoint.config, dtype=dtype, internal_dtype="f32", name="keras-hub",
        call=lambda model, i: decode(model, i, 0, i.tokens.shape[1], None)[0],
        decode=decode, names=NAMES,
    )  # fmt: skip


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through a cache with a slot for every column, as `generate` does, prompts too."""
    import jax.numpy as jnp

    if cache is None:
        b = model.backbone
        rows, columns = i.tokens.shape
        head = b.hidden_dim // b.num_query_heads
        shape = (rows, b.num_layers, 2, columns, b.num_key_value_heads, head)
        cache = jnp.zeros(shape, model.compute_dtype)
    result = model.call_with_cache(i.tokens[:, start:stop], cache, start)
    return result, result[2]
