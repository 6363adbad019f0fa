"""LitGPT's GPT in PyTorch, as its Llamas are configured.

Cannot show: `q_proj`, `k_proj` and `v_proj`, slices of one product; scores and weights of
attention, kept by `scaled_dot_product_attention`; the table of the rotation. Has no mask but the
causal one and counts positions in columns, so no left padding, no packed rows and no positions of
one's own.
"""

from __future__ import annotations

from typing import Any

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects import Calls, Takes, Tap, from_torch
from parity.subjects.adapters.module_names import as_in_torch, layer_names, parameter_names
from parity.subjects.base import Subject
from parity.subjects.torch.arrays import to_torch, torch_dtype

REQUIREMENT = "litgpt==0.5.13"
SCENARIOS = ("causal", "right_padded")
FUSED = "[qkv]_proj"
ROPE = Calls(Tap("layers.{i}.q_rope", "BNTH"), Tap("layers.{i}.k_rope", "BKTH"))
CACHE = [Tap("cache.{i}.k", "BKSH", 0), Tap("cache.{i}.v", "BKSH", 1)]
RENAMED = {
    "^model.layers": "transformer.h", "^model.embed_tokens": "transformer.wte", "up_proj": "fc_2",
    "^model.norm": "transformer.ln_f", "input_layernorm": "norm_1", "self_attn.o_proj": "attn.proj",
    "post_attention_layernorm": "norm_2", "gate_proj": "fc_1", "down_proj": "proj",
}  # fmt: skip
NAMES: dict[str, Any] = {
    "transformer.wte": "embed", "transformer.h.{i}": "layers.{i}.output", "lm_head": "logits",
    **layer_names("transformer.h.{i}", packed=True, renamed=RENAMED, lacks=FUSED),
    "litgpt.model.apply_rope()": ROPE, "litgpt.model.KVCache.forward()": CACHE,
    "transformer.ln_f": "norm",
}  # fmt: skip


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return LitGPT's model, its weights put together by `copy_weights_hf_llama`."""
    from litgpt import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    c, scaling = checkpoint.config, checkpoint.config.rope_scaling
    model = GPT(Config(
        name="any", block_size=c.max_position_embeddings, padded_vocab_size=c.vocab_size,
        vocab_size=c.vocab_size, n_layer=c.num_hidden_layers, n_embd=c.hidden_size, bias=False,
        n_head=c.num_attention_heads, n_query_groups=c.num_key_value_heads, head_size=c.head_dim,
        intermediate_size=c.intermediate_size, norm_class_name="RMSNorm", norm_eps=c.rms_norm_eps,
        mlp_class_name="LLaMAMLP", parallel_residual=False, rotary_percentage=1.0,
        rope_base=int(c.rope_theta), rope_adjustments=scaling and {
            "original_max_seq_len": scaling.original_max_position_embeddings,
            **{f: getattr(scaling, f) for f in ("factor", "low_freq_factor", "high_freq_factor")},
        },
    ))  # fmt: skip
    found: dict[str, Any] = {}
    theirs = {name: to_torch(checkpoint.read(name)) for name in checkpoint.tensors}
    copy_weights_hf_llama(model.config, {}, found, theirs)
    model.load_state_dict(found)
    return from_torch(
        model.to(torch_dtype(dtype)), config=c, dtype=dtype, internal_dtype="f32", name="litgpt",
        takes=Takes(scenarios=SCENARIOS),
        call=lambda model, i: model(columns(i, 0, i.tokens.shape[1])), names=NAMES, decode=decode,
        parameters=parameter_names(RENAMED, as_in_torch, tied=c.tie_word_embeddings, lacks=FUSED),
    )  # fmt: skip


def columns(i: Inputs, start: int, stop: int) -> Any:
    """Return the tokens of some columns."""
    return to_torch(i.tokens[:, start:stop].astype("int64"))


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through the caches that the model holds, one run's at a time."""
    import torch

    model.clear_kv_cache()
    model.set_kv_cache(*i.tokens.shape, dtype=model.lm_head.weight.dtype)
    for block, one in zip(model.transformer.h, cache or [], strict=cache is not None):
        block.attn.kv_cache = one
    result = model(columns(i, start, stop), torch.arange(start, stop))
    return result, [block.attn.kv_cache for block in model.transformer.h]
