"""Maps of names for modules that are called as Hugging Face's Llama calls them, or nearly.

Shapes as in `parity.taps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from parity.subjects.adapters.layouts import PARAMETERS, Tap


def layer_names(
    layer: str, *, packed: bool, renamed: Mapping[str, str] | None = None, lacks: str = ""
) -> dict[str, Any]:
    """Return what the modules of a layer show; rotation and softmax are functions, named apart.

    Args:
        layer: path of a layer, with `{i}`.
        packed: whether heads and their features lie in one axis.
        renamed: patterns in a module's name of Hugging Face's, and what stands there in its own.
        lacks: a pattern of modules that are not there.
    """
    heads = {letter: f"BT({letter}H)" if packed else None for letter in "NK"}
    names = {
        "self_attn.q_proj": Tap("layers.{i}.q_proj", heads["N"]),
        "self_attn.k_proj": Tap("layers.{i}.k_proj", heads["K"]),
        "self_attn.v_proj": Tap("layers.{i}.v_proj", heads["K"]),
        "self_attn.o_proj:input": Tap("layers.{i}.attn_context", heads["N"]),
        "self_attn.o_proj": Tap("layers.{i}.o_proj"),
        "post_attention_layernorm:input": Tap("layers.{i}.post_attention"),
        "mlp.down_proj:input": Tap("layers.{i}.mlp_act"),
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        names[name] = Tap(f"layers.{{i}}.{name}")
    for name in ("gate_proj", "up_proj", "down_proj"):
        names[f"mlp.{name}"] = Tap(f"layers.{{i}}.{name}")
    there = {one: tap for one, tap in names.items() if not (lacks and re.search(lacks, one))}
    return {f"{layer}:input": Tap("layers.{i}.input")} | {
        f"{layer}.{_renamed(one, renamed or {})}": tap for one, tap in there.items()
    }


def parameter_names(
    renamed: Mapping[str, str], layout: Callable[[str], str | None], *, tied: bool, lacks: str = ""
) -> dict[str, Tap]:
    """Return the map of parameters.

    Args:
        renamed: patterns in a canonical name, with `{i}`, and what stands there in the module's
            own, in turn.
        layout: from a canonical name to the axes of its own array; None where it is as in PyTorch.
        tied: whether the head is the embedding, and no parameter of its own.
        lacks: a pattern of those that are not there, or not in one of these layouts.
    """
    if tied:
        lacks = f"{lacks}|lm_head" if lacks else "lm_head"
    names = [kind.replace("model.layers.", "model.layers.{i}.") for kind in PARAMETERS]
    there = [name for name in names if not (lacks and re.search(lacks, name))]
    return {_renamed(name, renamed): Tap(name, layout(name)) for name in there}


def as_in_torch(name: str) -> None:
    """Return no axes: the parameter lies as PyTorch has it."""


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    for pattern, there in renamed.items():
        name = re.sub(pattern, there, name)
    return name


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
    **layer_names("model.layers.{i}", packed=True),
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
    return parameter_names({}, as_in_torch, tied=tied)
