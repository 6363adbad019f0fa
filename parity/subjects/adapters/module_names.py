"""Maps of names for modules that are called as Hugging Face's Llama calls them, or nearly.

Shapes as in `parity.taps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from parity.subjects.adapters.layouts import PARAMETERS, Tap


def layer_names(layer: str, attention: str, *, packed: bool) -> dict[str, Any]:
    """Return what the modules of a layer show; rotation and softmax are functions, named apart.

    Args:
        layer: path of a layer, with `{i}`.
        attention: name of attention in it.
        packed: whether heads and their features lie in one axis.
    """
    heads = {letter: f"BT({letter}H)" if packed else None for letter in "NK"}
    return {
        f"{layer}:input": "layers.{i}.input",
        f"{layer}.input_layernorm": "layers.{i}.input_layernorm",
        f"{layer}.{attention}.q_proj": Tap("layers.{i}.q_proj", heads["N"]),
        f"{layer}.{attention}.k_proj": Tap("layers.{i}.k_proj", heads["K"]),
        f"{layer}.{attention}.v_proj": Tap("layers.{i}.v_proj", heads["K"]),
        f"{layer}.{attention}.o_proj:input": Tap("layers.{i}.attn_context", heads["N"]),
        f"{layer}.{attention}.o_proj": "layers.{i}.o_proj",
        f"{layer}.post_attention_layernorm:input": "layers.{i}.post_attention",
        f"{layer}.post_attention_layernorm": "layers.{i}.post_attention_layernorm",
        f"{layer}.mlp.gate_proj": "layers.{i}.gate_proj",
        f"{layer}.mlp.up_proj": "layers.{i}.up_proj",
        f"{layer}.mlp.down_proj:input": "layers.{i}.mlp_act",
        f"{layer}.mlp.down_proj": "layers.{i}.down_proj",
    }


def parameter_names(
    renamed: Mapping[str, str], layout: Callable[[str], str | None], *, tied: bool
) -> dict[str, Tap]:
    """Return the map of parameters.

    Args:
        renamed: patterns in a canonical name, with `{i}`, and what stands there in the module's own,
            in turn.
        layout: from a canonical name to the axes of its own array; None where it is as in PyTorch.
        tied: whether the head is the embedding, and no parameter of its own.
    """
    found = {}
    for kind in PARAMETERS:
        name = own = kind.replace("model.layers.", "model.layers.{i}.")
        if tied and name == "lm_head.weight":
            continue
        for pattern, there in renamed.items():
            own = re.sub(pattern, there, own)
        found[own] = Tap(name, layout(name))
    return found


def kernel_axes(name: str) -> str | None:
    """Return the axes of a kernel [in, out], heads and features in one axis.

    >>> kernel_axes("model.layers.{i}.self_attn.q_proj.weight"), kernel_axes("lm_head.weight")
    ('D(NH)', 'DV')
    """
    axes = PARAMETERS[name.replace(".{i}", "")]
    if "embed" in name or len(axes) == 1:
        return None
    first, second = (axes[:4], axes[4:]) if axes[0] == "(" else (axes[0], axes[1:])
    return second + first


def split_axes(name: str) -> str | None:
    """Return the axes of a kernel [in, out], heads and features apart.

    >>> split_axes("model.layers.{i}.self_attn.o_proj.weight")
    'NHD'
    """
    axes = kernel_axes(name)
    return axes if axes is None else axes.replace("(", "").replace(")", "")


# transformers' Llama, whose parameters have canonical names and layouts.
HF_NAMES: dict[str, Any] = {
    "model.embed_tokens": "embed",
    **layer_names("model.layers.{i}", "self_attn", packed=True),
    "transformers.models.llama.modeling_llama.apply_rotary_pos_emb()": [
        Tap("layers.{i}.q_rope", axes="BNTH", item=0),
        Tap("layers.{i}.k_rope", axes="BKTH", item=1),
    ],
    "torch.nn.functional.softmax():input": "layers.{i}.attn_scores",
    "torch.nn.functional.softmax()": "layers.{i}.attn_probs",
    "model.rotary_emb:input": Tap("positions", item="position_ids"),
    "model.layers.{i}": "layers.{i}.output",
    "model.norm": "norm",
    "lm_head": "logits",
    # Keys and values pass through this on their way into the cache and out of it.
    "transformers.cache_utils.DynamicLayer.update()": [
        Tap("cache.{i}.k", axes="BKSH", item=0),
        Tap("cache.{i}.v", axes="BKSH", item=1),
    ],
}


def hf_parameters(*, tied: bool) -> dict[str, Tap]:
    """Return the map of transformers' parameters."""
    return parameter_names({}, lambda name: None, tied=tied)
