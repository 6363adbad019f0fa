"""LitGPT's GPT in PyTorch, as its Llamas are configured.

Cannot show: `q_proj`, `k_proj` and `v_proj`, slices of one product; scores and weights of attention, kept
by `scaled_dot_product_attention`; the table of the rotation. Has no mask but the causal one and counts
positions in columns, so no left padding, no packed rows and no positions of one's own.
"""

from __future__ import annotations

from typing import Any

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects.adapters.create import from_torch
from parity.subjects.adapters.layouts import Tap
from parity.subjects.adapters.module_names import parameter_names
from parity.subjects.adapters.names import Calls
from parity.subjects.base import Subject

REQUIREMENT = "litgpt==0.5.13"
SCENARIOS = ("causal", "right_padded")
H = "transformer.h.{i}"
ROPE = (Tap("layers.{i}.q_rope", "BNTH"), Tap("layers.{i}.k_rope", "BKTH"))
NAMES: dict[str, Any] = {
    "transformer.wte": "embed", f"{H}:input": "layers.{i}.input",
    f"{H}.norm_1": "layers.{i}.input_layernorm", "litgpt.model.apply_rope()": Calls(*ROPE),
    "litgpt.model.KVCache.forward()": [
        Tap("cache.{i}.k", "BKSH", item=0), Tap("cache.{i}.v", "BKSH", item=1)
    ],
    f"{H}.attn.proj:input": Tap("layers.{i}.attn_context", "BT(NH)"),
    f"{H}.attn.proj": "layers.{i}.o_proj", f"{H}.norm_2:input": "layers.{i}.post_attention",
    f"{H}.norm_2": "layers.{i}.post_attention_layernorm", f"{H}.mlp.fc_1": "layers.{i}.gate_proj",
    f"{H}.mlp.fc_2": "layers.{i}.up_proj", f"{H}.mlp.proj:input": "layers.{i}.mlp_act",
    f"{H}.mlp.proj": "layers.{i}.down_proj", H: "layers.{i}.output",
    "transformer.ln_f": "norm", "lm_head": "logits",
}  # fmt: skip
PARAMETERS = {
    "^model.layers": "transformer.h", "^model.embed_tokens": "transformer.wte",
    "^model.norm": "transformer.ln_f", "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2", "self_attn.o_proj": "attn.proj",
    "gate_proj": "fc_1", "up_proj": "fc_2", "down_proj": "proj",
}  # fmt: skip


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return LitGPT's model, its weights put together by `copy_weights_hf_llama`."""
    from litgpt import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    from parity.subjects.torch.arrays import to_torch, torch_dtype

    c, scaling = checkpoint.config, checkpoint.config.rope_scaling
    model = GPT(Config(
        name="checkpoint", block_size=c.max_position_embeddings, padded_vocab_size=c.vocab_size,
        vocab_size=c.vocab_size, n_layer=c.num_hidden_layers, n_embd=c.hidden_size, bias=False,
        n_head=c.num_attention_heads, n_query_groups=c.num_key_value_heads, head_size=c.head_dim,
        intermediate_size=c.intermediate_size, norm_class_name="RMSNorm", norm_eps=c.rms_norm_eps,
        mlp_class_name="LLaMAMLP", parallel_residual=False, rotary_percentage=1.0,
        rope_base=int(c.rope_theta), rope_adjustments=scaling and {
            "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_seq_len": scaling.original_max_position_embeddings,
        },
    ))  # fmt: skip
    found: dict[str, Any] = {}
    theirs = {name: to_torch(checkpoint.read(name)) for name in checkpoint.tensors}
    copy_weights_hf_llama(model.config, {}, found, theirs)
    model.load_state_dict(found)
    own = parameter_names(PARAMETERS, lambda name: None, tied=False)
    shown = {name: tap for name, tap in own.items() if name in dict(model.named_parameters()) or "{i}" in name and "self_attn" not in name}
    return from_torch(
        model.to(torch_dtype(dtype)), config=c, dtype=dtype, internal_dtype="f32", name="litgpt",
        call=lambda model, i: model(columns(i, 0, i.tokens.shape[1])), names=NAMES,
        decode=decode, parameters=shown,
    )  # fmt: skip


def columns(i: Inputs, start: int, stop: int) -> Any:
    """Return the tokens of some columns."""
    import torch

    return torch.tensor(i.tokens[:, start:stop].astype("int64"))


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through the caches that the model holds, one run's at a time."""
    import torch

    model.clear_kv_cache()
    model.set_kv_cache(*i.tokens.shape, dtype=model.lm_head.weight.dtype)
    held = [block.attn for block in model.transformer.h]
    for attention, one in zip(held, cache or [], strict=cache is not None):
        attention.kv_cache = one
    result = model(columns(i, start, stop), torch.arange(start, stop))
    return result, [attention.kv_cache for attention in held]
