"""What tensors a Llama has and what each format calls them, written apart from jaxllama's table.

Canonical are Hugging Face's names, [out, in], and rows of a head in halves.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from parity.sources.config import SourceConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Within a layer: Hugging Face's name, then GGUF's and Meta's.
_IN_LAYER = {
    "input_layernorm": ("attn_norm", "attention_norm"),
    "self_attn.q_proj": ("attn_q", "attention.wq"),
    "self_attn.k_proj": ("attn_k", "attention.wk"),
    "self_attn.v_proj": ("attn_v", "attention.wv"),
    "self_attn.o_proj": ("attn_output", "attention.wo"),
    "post_attention_layernorm": ("ffn_norm", "ffn_norm"),
    # w1 is what the activation is taken of.
    "mlp.gate_proj": ("ffn_gate", "feed_forward.w1"),
    "mlp.up_proj": ("ffn_up", "feed_forward.w3"),
    "mlp.down_proj": ("ffn_down", "feed_forward.w2"),
}
_OUTSIDE = {
    EMBEDDING: ("token_embd.weight", "tok_embeddings.weight"),
    "model.norm.weight": ("output_norm.weight", "norm.weight"),
    HEAD: ("output.weight", "output.weight"),
}


def expected_shapes(config: SourceConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by canonical name, in data-flow order."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (D,),
        "self_attn.q_proj": (queries, D),
        "self_attn.k_proj": (keys, D),
        "self_attn.v_proj": (keys, D),
        "self_attn.o_proj": (D, queries),
        "post_attention_layernorm": (D,),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (V, D)}
    for i in range(config.num_hidden_layers):
        found |= {f"model.layers.{i}.{part}.weight": shape for part, shape in layer.items()}
    found["model.norm.weight"] = (D,)
    if not config.tie_word_embeddings:
        found[HEAD] = (V, D)
    return found


def gguf_name(canonical: str) -> str:
    """Return what a GGUF file calls a tensor."""
    return _OUTSIDE[canonical][0] if canonical in _OUTSIDE else _layered(canonical, "blk", 0)


def meta_name(canonical: str) -> str:
    """Return what Meta's files call a tensor."""
    return _OUTSIDE[canonical][1] if canonical in _OUTSIDE else _layered(canonical, "layers", 1)


def _layered(canonical: str, prefix: str, column: int) -> str:
    _, _, layer, part = canonical.removesuffix(".weight").split(".", 3)
    return f"{prefix}.{layer}.{_IN_LAYER[part][column]}.weight"


# What torch.compile, FSDP, activation checkpointing and DataParallel put into names.
_OF_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}


def plain_names(stored: Iterable[str], landmarks: tuple[str, ...]) -> dict[str, str]:
    """Return the stored names of a file by what they are once wrappers are taken off.

    Args:
        stored: all names of the file.
        landmarks: names of its format, of which one is there: what stands before it stands before
            all of them.
    """
    inner = {".".join(p for p in name.split(".") if p not in _OF_WRAPPERS): name for name in stored}
    for landmark in landmarks:
        for name in inner:
            if f".{name}".endswith(f".{landmark}"):
                before = name.removesuffix(landmark)
                return {plain.removeprefix(before): at for plain, at in inner.items()}
    return inner


def rotated_heads(canonical: str, config: SourceConfig) -> int | None:
    """Return how many heads' rows GGUF and Meta keep in neighbouring pairs; None: no tensor's."""
    if canonical.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if canonical.endswith("k_proj.weight") else None


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a projection with each head's even rows first, then its odd ones.

    GGUF and Meta rotate rows 2i and 2i + 1 together, Hugging Face i and i + H / 2.

    Args:
        weight: [heads * H, in].
        heads: how many heads its rows are of.

    Source: `permute` of transformers' `convert_llama_weights_to_hf.py`.
    """
    rows = np.arange(len(weight)).reshape(heads, -1)
    return weight[np.concatenate([rows[:, ::2], rows[:, 1::2]], axis=1).reshape(-1)]
