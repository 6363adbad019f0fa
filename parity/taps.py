"""The canonical names of a Llama's intermediates: what is compared, in which layout and order.

The names are the contract between implementations. A subject may lack some; it may not rename,
transpose or reshape any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import permutations, product

# Letters: B batch, T query, S key, N query heads, K kv heads, H head dim, R = H / 2 rotated pairs,
# D model dim, F mlp dim, V vocabulary. Order is data flow: what stands further down is computed
# from what stands above, so the first one that differs is where a difference begins.
SETUP_TAPS = {"rope.inv_freq": "R", "positions": "BT", "mask": "BTS"}
LAYER_TAPS = {
    "input": "BTD",
    "input_layernorm": "BTD",
    "q_proj": "BTNH",
    "k_proj": "BTKH",
    "v_proj": "BTKH",
    "q_rope": "BTNH",
    "k_rope": "BTKH",
    "attn_scores": "BNTS",
    "attn_probs": "BNTS",
    "attn_context": "BTNH",
    "o_proj": "BTD",
    "post_attention": "BTD",
    "post_attention_layernorm": "BTD",
    "gate_proj": "BTF",
    "up_proj": "BTF",
    "mlp_act": "BTF",
    "down_proj": "BTD",
    "output": "BTD",
}
HEAD_TAPS = {"norm": "BTD", "logits": "BTV"}
CACHE_TAPS = {"cache.k": "BSKH", "cache.v": "BSKH"}

# Gradients of the loss, by what they are taken with respect to: every activation and every
# parameter, the parameters under their canonical (Hugging Face) names. O and I are a weight's
# output and input features. Order is the backward pass: what stands further down is computed from
# what stands above, and a parameter's gradient from that of the product it takes part in.
GRAD_HEAD = {
    "loss": "",
    "grad.logits": "BTV",
    "grad.lm_head.weight": "VD",
    "grad.norm": "BTD",
    "grad.model.norm.weight": "D",
}
# The module whose weight a layer's tap is computed with, and the axes of that weight.
LAYER_MODULES = {
    "input_layernorm": ("input_layernorm", "D"),
    "q_proj": ("self_attn.q_proj", "OI"),
    "k_proj": ("self_attn.k_proj", "OI"),
    "v_proj": ("self_attn.v_proj", "OI"),
    "o_proj": ("self_attn.o_proj", "OI"),
    "post_attention_layernorm": ("post_attention_layernorm", "D"),
    "gate_proj": ("mlp.gate_proj", "OI"),
    "up_proj": ("mlp.up_proj", "OI"),
    "down_proj": ("mlp.down_proj", "OI"),
}
# The weight a tap is computed with, by kinds; a tied head's is the embedding's.
WEIGHT_OF = {
    "embed": "model.embed_tokens.weight",
    **{f"layers.{tap}": f"model.layers.{name}.weight" for tap, (name, _) in LAYER_MODULES.items()},
    "norm": "model.norm.weight",
    "logits": "lm_head.weight",
}
# What an operator computes a tap of, by kinds: all that can carry rounding. Between two layers the
# residual stream is handed on: `layers.input` is the output before it, or the embedding.
OPERANDS = {
    "layers.input": ("layers.output",),
    "layers.input_layernorm": ("layers.input",),
    "layers.q_proj": ("layers.input_layernorm",),
    "layers.k_proj": ("layers.input_layernorm",),
    "layers.v_proj": ("layers.input_layernorm",),
    "layers.q_rope": ("layers.q_proj", "rope.inv_freq"),
    "layers.k_rope": ("layers.k_proj", "rope.inv_freq"),
    "layers.attn_scores": ("layers.q_rope", "layers.k_rope"),
    "layers.attn_probs": ("layers.attn_scores",),
    "layers.attn_context": ("layers.attn_probs", "layers.v_proj"),
    "layers.o_proj": ("layers.attn_context",),
    "layers.post_attention": ("layers.input", "layers.o_proj"),
    "layers.post_attention_layernorm": ("layers.post_attention",),
    "layers.gate_proj": ("layers.post_attention_layernorm",),
    "layers.up_proj": ("layers.post_attention_layernorm",),
    "layers.mlp_act": ("layers.gate_proj", "layers.up_proj"),
    "layers.down_proj": ("layers.mlp_act",),
    "layers.output": ("layers.post_attention", "layers.down_proj"),
    "norm": ("layers.output",),
    "logits": ("norm",),
}

GRAD_LAYER: dict[str, str] = {}
for _name, _axes in reversed(LAYER_TAPS.items()):
    GRAD_LAYER[f"grad.layers.{_name}"] = _axes
    if _name in LAYER_MODULES:
        GRAD_LAYER[f"grad.model.layers.{LAYER_MODULES[_name][0]}.weight"] = LAYER_MODULES[_name][1]
GRAD_EMBED = {"grad.embed": "BTD", "grad.model.embed_tokens.weight": "VD"}
GRAD_TAPS = GRAD_HEAD | GRAD_LAYER | GRAD_EMBED
PARAMETER_GRADIENTS = frozenset(kind for kind in GRAD_TAPS if kind.endswith(".weight"))

# By kind: a tap's name without its layer number.
AXES = {
    **SETUP_TAPS,
    "embed": "BTD",
    **{f"layers.{name}": axes for name, axes in LAYER_TAPS.items()},
    **HEAD_TAPS,
    **CACHE_TAPS,
    **GRAD_TAPS,
}
# Letters of layouts, R2 and G only where another implementation's are declared.
LETTERS = {
    "B": "batch",
    "T": "query tokens (columns, pads included)",
    "S": "key tokens",
    "N": "query heads",
    "K": "key-value heads",
    "H": "features of a head",
    "R": "rotated pairs, H / 2",
    "D": "model features",
    "F": "mlp features",
    "V": "vocabulary",
    "O": "a weight's output features",
    "I": "a weight's input features",
}
# Layouts that are offered for an array that has another shape than its tap.
_MOST_LAYOUTS = 3
# What a tap is, by kind; where one has no value of its own, as a hidden cell, that is said.
MEANINGS = {
    "rope.inv_freq": "frequencies of the rotation after scaling, radians a token; 0 is the fastest",
    "positions": "rotary position of each token; of no meaning on pads",
    "mask": "True where the query sees the key; rows of pads are of no meaning",
    "embed": "rows of the embedding",
    "layers.input": "the residual stream that a layer is given",
    "layers.input_layernorm": "RMSNorm of it, weight applied",
    "layers.q_proj": "queries before rotation",
    "layers.k_proj": "keys before rotation",
    "layers.v_proj": "values",
    "layers.q_rope": "queries after rotation, not scaled by 1/sqrt(H)",
    "layers.k_rope": "keys after rotation",
    "layers.attn_scores": "q . k / sqrt(H): scaled, before the mask, which hidden cells may hold",
    "layers.attn_probs": "softmax of the masked scores: rows sum to 1, hidden cells are 0",
    "layers.attn_context": "values weighted by it, before o_proj",
    "layers.o_proj": "attention's output",
    "layers.post_attention": "residual stream with attention's output added",
    "layers.post_attention_layernorm": "RMSNorm of it, weight applied",
    "layers.gate_proj": "mlp's gate before SiLU",
    "layers.up_proj": "mlp's other half",
    "layers.mlp_act": "SiLU(gate) * up, before down_proj",
    "layers.down_proj": "mlp's output",
    "layers.output": "residual stream with mlp's output added",
    "norm": "RMSNorm of the last layer's output, weight applied",
    "logits": "scores of the next token, before softmax",
    "cache.k": "keys that are attended to, rotated, in the order of the columns fed",
    "cache.v": "values that are attended to, likewise",
    "loss": "mean cross-entropy of every real token's successor",
}


def layouts_like(shape: Sequence[int], axes: str, sizes: Sequence[int]) -> list[str]:
    """Return layouts of a tap in which it would have a shape, those that move least first.

    Args:
        shape: of an array that is said to be the tap, and has not the tap's shape.
        axes: the tap's, in letters.
        sizes: of these.

    >>> layouts_like((2, 9, 32), "BTNH", (2, 9, 4, 8)), layouts_like((2, 9), "BTNH", (2, 9, 4, 8))
    (['BT(NH)'], [])
    """
    if len(shape) > len(axes) or math.prod(shape) != math.prod(sizes):
        return []
    found = []
    for order in permutations(range(len(axes))):
        for cuts in product((True, False), repeat=len(order) - 1):
            groups = [[order[0]]]
            for place, cut in zip(order[1:], cuts, strict=True):
                groups.append([place]) if cut else groups[-1].append(place)
            # Of axes in one, the canonical order alone: any other has the same shape.
            if any(group != sorted(group) for group in groups):
                continue
            if [math.prod(sizes[i] for i in group) for group in groups] == list(shape):
                letters = ["".join(axes[i] for i in group) for group in groups]
                found.append("".join(f"({one})" if len(one) > 1 else one for one in letters))
    return found[:_MOST_LAYOUTS]


def layout_hint(shape: Sequence[int], axes: str, sizes: Sequence[int]) -> str:
    """Return what to declare of an array with another shape than its tap; empty if nothing fits.

    Of a weight's gradient nothing: its parameter is declared, by heads and features.
    """
    if "O" in axes:
        return ""
    fits = " or ".join(f'axes="{one}"' for one in layouts_like(shape, axes, sizes))
    return fits and f"if it is the same laid out otherwise, declare {fits} in its Tap"


def meaning_of(kind: str) -> str:
    """Return what a tap is, in a few words."""
    return MEANINGS.get(kind) or f"gradient of the loss by {kind.removeprefix('grad.')}"


def template_of(kind: str) -> str:
    """Return a kind as names write it, `{i}` for the layer.

    >>> template_of("layers.q_proj"), template_of("grad.model.layers.mlp.up_proj.weight")
    ('layers.{i}.q_proj', 'grad.model.layers.{i}.mlp.up_proj.weight')
    """
    return re.sub(r"(^|\.)(layers|cache)\.", r"\1\2.{i}.", kind, count=1)


def dtype_of(kind: str) -> str:
    """Return a tap's dtype in words: most are of the run's."""
    exact = {"positions": "int32", "mask": "bool", "rope.inv_freq": "float32 or wider"}
    return exact.get(kind, "the run's")


# What is attended to: read from the cache after this step's keys and values have been written.
_ORDER = {kind: float(place) for place, kind in enumerate(AXES)}
_ORDER |= {"cache.k": _ORDER["layers.k_rope"] + 0.3, "cache.v": _ORDER["layers.k_rope"] + 0.6}
_INDEXED = re.compile(r"^((?:grad\.)?(?:model\.)?layers|cache)\.(\d{1,9})\.(.+)$")


def split_name(name: str) -> tuple[str, int | None]:
    """Return a tap's kind and layer: `layers.3.q_proj` -> (`layers.q_proj`, 3).

    >>> split_name("layers.3.q_proj")
    ('layers.q_proj', 3)
    >>> split_name("grad.model.layers.3.mlp.up_proj.weight")
    ('grad.model.layers.mlp.up_proj.weight', 3)
    >>> split_name("logits")
    ('logits', None)
    """
    match = _INDEXED.match(name)
    if match is None:
        return name, None
    return f"{match[1]}.{match[3]}", int(match[2])


def stage_of(name: str, layers: int) -> int:
    """Return the stage of a forward pass that shows a tap: 0 the embedding's, `layers` + 1 the
    head's.

    >>> [stage_of(name, 4) for name in ("mask", "layers.0.q_proj", "cache.3.k", "logits")]
    [0, 1, 4, 5]
    """
    kind, layer = split_name(name)
    if layer is not None:
        return layer + 1
    return layers + 1 if kind in HEAD_TAPS else 0


def flow_key(name: str) -> tuple[int, int, float]:
    """Sort key that puts tap names in data-flow order; unknown names come last."""
    kind, layer = split_name(name)
    if kind in GRAD_TAPS:  # after the forward pass, and the last layer first
        stage = 3 if kind in GRAD_HEAD else 4 if kind in GRAD_LAYER else 5
        return stage, -(layer or 0), _ORDER[kind]
    stage = 0 if kind in SETUP_TAPS or kind == "embed" else 1 if layer is not None else 2
    return stage, layer or 0, _ORDER.get(kind, len(_ORDER))


def in_flow_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted so that none depends on a later one."""
    return sorted(names, key=flow_key)


def expected_names(layers: int, *, cache: bool = False) -> list[str]:
    """Return every tap of a forward pass through `layers` layers, in data-flow order.

    Args:
        layers: L.
        cache: whether the pass goes through a key-value cache, which is shown too.
    """
    held = CACHE_TAPS if cache else {}
    names = [
        *SETUP_TAPS,
        "embed",
        *(f"layers.{i}.{name}" for i in range(layers) for name in LAYER_TAPS),
        *(f"cache.{i}.{kind.removeprefix('cache.')}" for i in range(layers) for kind in held),
        *HEAD_TAPS,
    ]
    return in_flow_order(names)


def gradient_names(layers: int, *, tied: bool) -> list[str]:
    """Return every tap of a backward pass through `layers` layers, in the order of its flow.

    Args:
        layers: L.
        tied: whether the head is the embedding, and has no gradient of its own.
    """
    kinds = [kind for kind in GRAD_TAPS if not (tied and kind == "grad.lm_head.weight")]
    names = [
        kind.replace("layers.", f"layers.{i}.", 1)
        for kind in kinds
        for i in (range(layers) if kind in GRAD_LAYER else range(1))
    ]
    return in_flow_order(names)
