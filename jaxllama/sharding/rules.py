"""What lies along which axis of a mesh: the one table of rules, and the names it is written in.

A parameter's or an activation's axes have names; a name says along which axes of the mesh it is
cut. Along `data` rows are cut; along `fsdp` rows, and parameters, which are put together where
they are needed (Rajbhandari et al. 2020, arXiv 1910.02054); along `tensor` heads, the MLP and
the vocabulary, so that a device has columns of one product and the rows of the next that they
meet (Shoeybi et al. 2019, arXiv 1909.08053).
"""

from __future__ import annotations

Names = tuple[str | None, ...]

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),  # of parameters alone: the residual stream is whole on every device
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# By module; weights are [out, in]. What is not named, norms, is whole on every device.
PARAMETERS: dict[str, Names] = {
    "embed_tokens": ("vocab", "embed"),
    "q_proj": ("heads", "embed"),
    "k_proj": ("kv_heads", "embed"),
    "v_proj": ("kv_heads", "embed"),
    "o_proj": ("embed", "heads"),
    "gate_proj": ("mlp", "embed"),
    "up_proj": ("mlp", "embed"),
    "down_proj": ("embed", "mlp"),
    "lm_head": ("vocab", "embed"),
}

# By tap; axes past the last that is named are whole. Those of a layer by their short names.
_STREAM: Names = ("batch", None, None)
_MAP: Names = ("batch", "heads", None, None)
_QUERIES: Names = ("batch", None, "heads", None)
_KEYS: Names = ("batch", None, "kv_heads", None)
_HIDDEN: Names = ("batch", None, "mlp")
ACTIVATIONS: dict[str, Names] = {
    "positions": ("batch", None),
    "mask": ("batch", None, None),
    "embed": _STREAM,
    "input": _STREAM,
    "input_layernorm": _STREAM,
    "q_proj": _QUERIES,
    "k_proj": _KEYS,
    "v_proj": _KEYS,
    "q_rope": _QUERIES,
    "k_rope": _KEYS,
    "cache.k": _KEYS,
    "cache.v": _KEYS,
    "attn_scores": _MAP,
    "attn_probs": _MAP,
    "attn_context": _QUERIES,
    "o_proj": _STREAM,
    "post_attention": _STREAM,
    "post_attention_layernorm": _STREAM,
    "gate_proj": _HIDDEN,
    "up_proj": _HIDDEN,
    "mlp_act": _HIDDEN,
    "down_proj": _STREAM,
    "output": _STREAM,
    "norm": _STREAM,
    "logits": ("batch", None, "vocab"),
}

# Of a cache: all layers in one array, or one by heads.
CACHE_STACKED: Names = (None, "batch", None, "kv_heads", None)
CACHE_APART: Names = ("batch", "kv_heads", None, None)
CACHE_ROWS: Names = ("batch", None)
