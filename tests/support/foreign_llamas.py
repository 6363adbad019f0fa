"""Llamas not written here, with the names of their intermediates: what users of parity write."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects import Calls, Tap
from parity.subjects.torch.arrays import to_torch

# Hugging Face transformers, in PyTorch. Rotation and softmax are functions, not modules.
LLAMA = "transformers.models.llama.modeling_llama"
HF_NAMES: dict[str, Any] = {
    "model.embed_tokens": "embed",
    "model.layers.{i}:input": "layers.{i}.input",
    "model.layers.{i}.input_layernorm": "layers.{i}.input_layernorm",
    "model.layers.{i}.self_attn.q_proj": Tap("layers.{i}.q_proj", axes="BT(NH)"),
    "model.layers.{i}.self_attn.k_proj": Tap("layers.{i}.k_proj", axes="BT(KH)"),
    "model.layers.{i}.self_attn.v_proj": Tap("layers.{i}.v_proj", axes="BT(KH)"),
    f"{LLAMA}.apply_rotary_pos_emb()": [
        Tap("layers.{i}.q_rope", axes="BNTH", item=0),
        Tap("layers.{i}.k_rope", axes="BKTH", item=1),
    ],
    "torch.nn.functional.softmax():input": "layers.{i}.attn_scores",
    "torch.nn.functional.softmax()": "layers.{i}.attn_probs",
    "model.layers.{i}.self_attn.o_proj:input": Tap("layers.{i}.attn_context", axes="BT(NH)"),
    "model.layers.{i}.self_attn.o_proj": "layers.{i}.o_proj",
    "model.layers.{i}.post_attention_layernorm:input": "layers.{i}.post_attention",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.post_attention_layernorm",
    "model.layers.{i}.mlp.gate_proj": "layers.{i}.gate_proj",
    "model.layers.{i}.mlp.up_proj": "layers.{i}.up_proj",
    "model.layers.{i}.mlp.down_proj:input": "layers.{i}.mlp_act",
    "model.layers.{i}.mlp.down_proj": "layers.{i}.down_proj",
    "model.layers.{i}": "layers.{i}.output",
    "model.norm": "norm",
    "lm_head": "logits",
}


def hf_model(checkpoint: Checkpoint, **changes: Any) -> LlamaForCausalLM:
    """Return transformers' model with a checkpoint's weights, its configuration changed."""
    config = HFConfig(**{**checkpoint.hf_config, **changes}, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    weights = {name: to_torch(checkpoint.read(name)) for name in checkpoint.tensors}
    model.load_state_dict(weights, strict=not checkpoint.config.tie_word_embeddings)
    return model


def hf_call(model: LlamaForCausalLM, inputs: Inputs) -> Any:
    """Run transformers' model on a scenario."""
    return hf_columns(model, inputs, 0, inputs.tokens.shape[1], None)


def hf_decode(
    model: LlamaForCausalLM, inputs: Inputs, start: int, stop: int, cache: Any
) -> tuple[Any, Any]:
    """Feed some columns through transformers' cache, which it makes itself at first."""
    result = hf_columns(model, inputs, start, stop, cache)
    return result, result.past_key_values


def hf_columns(
    model: LlamaForCausalLM, inputs: Inputs, start: int, stop: int, cache: Any, offset: int = 0
) -> Any:
    """Run transformers' model on some columns; `offset` is added to their positions."""
    hidden = to_torch(~inputs.mask[:, None, start:stop, :stop])
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    positions = to_torch(inputs.positions[:, start:stop].astype(np.int64)) + offset
    tokens = to_torch(inputs.tokens[:, start:stop].astype(np.int64))
    return model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache)


# What a decode run shows besides; a cache's keys and values pass through this method.
HF_CACHE: dict[str, Any] = {
    "transformers.cache_utils.DynamicLayer.update()": [
        Tap("cache.{i}.k", axes="BKSH", item=0),
        Tap("cache.{i}.v", axes="BKSH", item=1),
    ]
}
# Its parameters have the canonical names and layouts.
HF_PARAMETERS = {
    name: name
    for name in (
        "model.embed_tokens.weight",
        "model.layers.{i}.input_layernorm.weight",
        "model.layers.{i}.self_attn.q_proj.weight",
        "model.layers.{i}.self_attn.k_proj.weight",
        "model.layers.{i}.self_attn.v_proj.weight",
        "model.layers.{i}.self_attn.o_proj.weight",
        "model.layers.{i}.post_attention_layernorm.weight",
        "model.layers.{i}.mlp.gate_proj.weight",
        "model.layers.{i}.mlp.up_proj.weight",
        "model.layers.{i}.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    )
}


# google-tunix: its Llama 3 in Flax NNX.
TUNIX_NAMES: dict[str, Any] = {
    "embedder.encode()": "embed",
    "layers.{i}:input": "layers.{i}.input",
    "layers.{i}.input_layernorm": "layers.{i}.input_layernorm",
    "layers.{i}.attn.q_proj": "layers.{i}.q_proj",
    "layers.{i}.attn.k_proj": "layers.{i}.k_proj",
    "layers.{i}.attn.v_proj": "layers.{i}.v_proj",
    "tunix.models.llama3.model.apply_rope()": Calls("layers.{i}.q_rope", "layers.{i}.k_rope"),
    "jax.nn.softmax():input": "layers.{i}.attn_scores",
    "jax.nn.softmax()": "layers.{i}.attn_probs",
    "layers.{i}.attn.o_proj:input": "layers.{i}.attn_context",
    "layers.{i}.attn.o_proj": "layers.{i}.o_proj",
    "layers.{i}.post_attention_layernorm:input": "layers.{i}.post_attention",
    "layers.{i}.post_attention_layernorm": "layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp.gate_proj": "layers.{i}.gate_proj",
    "layers.{i}.mlp.up_proj": "layers.{i}.up_proj",
    "layers.{i}.mlp.down_proj:input": "layers.{i}.mlp_act",
    "layers.{i}.mlp.down_proj": "layers.{i}.down_proj",
    "layers.{i}": Tap("layers.{i}.output", item=1),
    "final_norm": "norm",
    "output": Tap("logits", item=0),
}


# Its cache has as many slots as it was made with; values are written before keys.
TUNIX_CACHE: dict[str, Any] = {
    "jax.lax.dynamic_update_slice()": Calls("cache.{i}.v", "cache.{i}.k")
}
# Its kernels are [in, out], those of attention with heads apart.
TUNIX_PARAMETERS: dict[str, Any] = {
    "embedder.input_embedding": "model.embed_tokens.weight",
    "layers.{i}.input_layernorm.w": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.attn.q_proj.w": Tap("model.layers.{i}.self_attn.q_proj.weight", axes="DNH"),
    "layers.{i}.attn.k_proj.w": Tap("model.layers.{i}.self_attn.k_proj.weight", axes="DKH"),
    "layers.{i}.attn.v_proj.w": Tap("model.layers.{i}.self_attn.v_proj.weight", axes="DKH"),
    "layers.{i}.attn.o_proj.w": Tap("model.layers.{i}.self_attn.o_proj.weight", axes="NHD"),
    "layers.{i}.post_attention_layernorm.w": "model.layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.mlp.gate_proj.kernel": Tap("model.layers.{i}.mlp.gate_proj.weight", axes="DF"),
    "layers.{i}.mlp.up_proj.kernel": Tap("model.layers.{i}.mlp.up_proj.weight", axes="DF"),
    "layers.{i}.mlp.down_proj.kernel": Tap("model.layers.{i}.mlp.down_proj.weight", axes="FD"),
    "final_norm.w": "model.norm.weight",
    "lm_head.w": Tap("lm_head.weight", axes="DV"),
}


def tunix() -> ModuleType:
    """Import tunix's Llama alone: the package's front page imports training frameworks."""
    if "tunix" not in sys.modules:
        found = importlib.util.find_spec("tunix")
        assert found is not None and found.submodule_search_locations is not None
        front = ModuleType("tunix")
        front.__path__ = list(found.submodule_search_locations)
        sys.modules["tunix"] = front
    return importlib.import_module("tunix.models.llama3.model")


@contextmanager
def plain_jax() -> Iterator[None]:
    """Promote as JAX does by default: our tests are stricter than other people's code."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        yield


def tunix_model(checkpoint: Checkpoint) -> nnx.Module:
    """Return tunix's model with a checkpoint's weights."""
    c, code = checkpoint.config, tunix()
    config = code.ModelConfig(
        num_layers=c.num_hidden_layers,
        vocab_size=c.vocab_size,
        embed_dim=c.hidden_size,
        hidden_dim=c.intermediate_size,
        num_heads=c.num_attention_heads,
        head_dim=c.head_dim,
        num_kv_heads=c.num_key_value_heads,
        rope_theta=int(c.rope_theta),
        norm_eps=c.rms_norm_eps,
    )
    with warnings.catch_warnings(), plain_jax():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the names its parameters have
        model = code.Llama3(config, rngs=nnx.Rngs(0))
        _fill(model, checkpoint)
    return model


def _fill(model: Any, checkpoint: Checkpoint) -> None:
    c = checkpoint.config

    def weight(name: str, *shape: int) -> jax.Array:
        return jnp.asarray(checkpoint.read(f"{name}.weight").T.reshape(shape or (-1,)), jnp.float32)

    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    N, K, V = c.num_attention_heads, c.num_key_value_heads, c.vocab_size
    model.embedder.input_embedding[...] = weight("model.embed_tokens", D, V).T
    model.final_norm.w[...] = weight("model.norm")
    model.lm_head.w[...] = weight("lm_head", D, V)
    for i, layer in enumerate(model.layers):
        name = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, norm).w[...] = weight(f"{name}.{norm}")
        for part, heads in (("q_proj", N), ("k_proj", K), ("v_proj", K)):
            getattr(layer.attn, part).w[...] = weight(f"{name}.self_attn.{part}", D, heads, H)
        layer.attn.o_proj.w[...] = weight(f"{name}.self_attn.o_proj", N, H, D)
        for part, shape in (("gate_proj", (D, F)), ("up_proj", (D, F)), ("down_proj", (F, D))):
            getattr(layer.mlp, part).kernel[...] = weight(f"{name}.mlp.{part}", *shape)


def tunix_call(model: Any, inputs: Inputs) -> Any:
    """Run tunix's model on a scenario."""
    tokens, positions, mask = map(jnp.asarray, (inputs.tokens, inputs.positions, inputs.mask))
    with plain_jax():
        return model(tokens, positions, None, mask)


def tunix_decode(model: Any, inputs: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed some columns through tunix's cache, with a slot for every column of the scenario."""
    if cache is None:
        cache = tunix_cache(model.config, *inputs.tokens.shape)
    part = (a[:, start:stop] for a in (inputs.tokens, inputs.positions, inputs.mask))
    tokens, positions, mask = map(jnp.asarray, part)
    with plain_jax():
        result = model(tokens, positions, cache, mask)
    return result, result[1]


def tunix_cache(config: Any, batch: int, slots: int) -> dict[str, Any]:
    """Return an empty cache as tunix's sampler makes it."""
    shape = (batch, slots, config.num_kv_heads, config.head_dim)
    return {
        f"layer_{i}": {
            "k": jnp.zeros(shape, jnp.float32),
            "v": jnp.zeros(shape, jnp.float32),
            "end_index": jnp.zeros((batch,), jnp.int32),
        }
        for i in range(config.num_layers)
    }
