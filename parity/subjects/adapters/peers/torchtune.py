"""torchtune's Llama 3.1 decoder in PyTorch.

Cannot show: `q_proj`, `k_proj`, their rotations and the cache's keys, whose pairs lie side by
side, which no layout says; scores and weights of attention, kept by
`scaled_dot_product_attention`. Its builder takes the scaling's factor and none of its bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects import Tap, from_torch
from parity.subjects.adapters.module_names import as_in_torch, layer_names, parameter_names
from parity.subjects.base import Subject

REQUIREMENT = "torchtune==0.6.1"
PAIRS = "[qk]_proj"
RENAMED = {
    "^model.": "", "self_attn": "attn", "o_proj": "output_proj", "gate_proj": "w1", "up_proj": "w3",
    "down_proj": "w2", "input_layernorm": "sa_norm", "post_attention_layernorm": "mlp_norm",
    "norm.weight": "norm.scale", "embed_tokens": "tok_embeddings", "lm_head": "output",
}  # fmt: skip
NAMES: dict[str, Any] = {
    "tok_embeddings": "embed", "layers.{i}": "layers.{i}.output", "output": "logits",
    "norm": "norm", "torchtune.modules.KVCache.update()": Tap("cache.{i}.v", "BKSH", item=1),
}  # fmt: skip


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return torchtune's model, its weights renamed and permuted by `hf_to_tune`."""
    from torchtune.models import convert_weights, llama3, llama3_1, llama3_2

    from parity.subjects.torch.arrays import to_torch, torch_dtype

    c, tied = checkpoint.config, checkpoint.config.tie_word_embeddings
    build = llama3_2.llama3_2 if tied else llama3_1.llama3_1 if c.rope_scaling else llama3.llama3
    plain = build is llama3.llama3
    factor = {} if plain else {"scale_factor": getattr(c.rope_scaling, "factor", 1)}
    model = build(
        c.vocab_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
        c.hidden_size, c.max_position_embeddings, rope_base=c.rope_theta, norm_eps=c.rms_norm_eps,
        intermediate_dim=c.intermediate_size, **factor,
    ).to(torch_dtype(dtype))  # fmt: skip
    theirs = {name: to_torch(checkpoint.read(name)) for name in checkpoint.tensors}
    heads = c.num_attention_heads, c.num_key_value_heads
    model.load_state_dict(convert_weights.hf_to_tune(theirs, *heads, c.hidden_size, c.head_dim))
    return from_torch(
        model, config=c, dtype=dtype, internal_dtype="f32", name="torchtune", decode=decode,
        call=lambda model, i: fed(model, i, 0, i.tokens.shape[1], i.tokens.shape[1]),
        names=NAMES | layer_names("layers.{i}", packed=True, renamed=RENAMED, lacks=PAIRS),
        parameters=parameter_names(RENAMED, as_in_torch, tied=tied, lacks=PAIRS),
    )  # fmt: skip


def fed(model: Any, i: Inputs, start: int, stop: int, keys: int) -> Any:
    """Run it on some columns, each seeing itself at least: a row of pads alone has no softmax."""
    import torch

    sees = (i.mask | np.eye(i.mask.shape[1], dtype=bool))[:, start:stop, :keys]
    tokens, positions = (torch.tensor(a[:, start:stop]).long() for a in (i.tokens, i.positions))
    return model(tokens, mask=torch.tensor(sees), input_pos=positions)


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through the caches that the model holds while it runs, and no longer."""
    if cache is None:
        model.setup_caches(
            len(i.tokens), model.norm.scale.dtype, decoder_max_seq_len=i.tokens.shape[1]
        )
        cache = [layer.attn.kv_cache for layer in model.layers]
    for layer, one in zip(model.layers, cache, strict=True):
        layer.attn.kv_cache = one
    result = fed(model, i, start, stop, i.tokens.shape[1])
    for layer in model.layers:
        layer.attn.kv_cache = None
    return result, cache
