"""Maps of names for modules whose parts are called as in libraries that many copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxllama.errors import InputError
from parity.subjects.adapters.configs import ConfigLike, as_config
from parity.subjects.adapters.layouts import Tap
from parity.subjects.adapters.shown import ONLY
from parity.subjects.adapters.targets import walk


@dataclass(frozen=True)
class Convention:
    """How a library calls the parts of a Llama.

    Attributes:
        name: of the library.
        parts: where each part may be, first come first taken; those of a layer relative to it.
        halves: whether its rotated pairs are known to lie in halves. Where names do not tell, what
            is rotated is left out.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    halves: bool


def _within(names: str, *folders: str) -> tuple[str, ...]:
    return tuple(f"{folder}.{name}" for folder in folders for name in names.split())


_ATTENTION = ("self_attn", "attn", "attention")
CONVENTIONS = (
    Convention(
        "Hugging Face",
        {
            "layer": ("model.layers.{i}", "layers.{i}"),
            "embed": ("model.embed_tokens", "embed_tokens"),
            "input_layernorm": ("input_layernorm",),
            "q_proj": _within("q_proj", *_ATTENTION),
            "k_proj": _within("k_proj", *_ATTENTION),
            "v_proj": _within("v_proj", *_ATTENTION),
            "o_proj": _within("o_proj", *_ATTENTION),
            "post_attention_layernorm": ("post_attention_layernorm",),
            "gate_proj": ("mlp.gate_proj",),
            "up_proj": ("mlp.up_proj",),
            "down_proj": ("mlp.down_proj",),
            "norm": ("model.norm", "norm", "final_norm"),
            "head": ("lm_head",),
        },
        halves=True,
    ),
    Convention(
        "Meta",
        {
            "layer": ("layers.{i}", "model.layers.{i}"),
            "embed": ("tok_embeddings", "model.tok_embeddings"),
            "input_layernorm": ("attention_norm",),
            "q_proj": ("attention.wq",),
            "k_proj": ("attention.wk",),
            "v_proj": ("attention.wv",),
            "o_proj": ("attention.wo",),
            "post_attention_layernorm": ("ffn_norm",),
            "gate_proj": ("feed_forward.w1",),
            "up_proj": ("feed_forward.w3",),
            "down_proj": ("feed_forward.w2",),
            "norm": ("norm", "model.norm"),
            "head": ("output", "model.output"),
        },
        halves=False,
    ),
    Convention(
        "nanoGPT",
        {
            "layer": ("transformer.h.{i}", "h.{i}"),
            "embed": ("transformer.wte", "wte"),
            "input_layernorm": ("ln_1", "norm_1", "rms_1"),
            "q_proj": _within("q_proj wq c_q", "attn"),
            "k_proj": _within("k_proj wk c_k", "attn"),
            "v_proj": _within("v_proj wv c_v", "attn"),
            "o_proj": _within("c_proj proj o_proj wo", "attn"),
            "post_attention_layernorm": ("ln_2", "norm_2", "rms_2"),
            "gate_proj": _within("gate_proj w1 fc_1 c_fc1", "mlp"),
            "up_proj": _within("up_proj w3 fc_2 c_fc2", "mlp"),
            "down_proj": _within("c_proj down_proj w2 proj", "mlp"),
            "norm": ("transformer.ln_f", "ln_f", "transformer.norm_f", "transformer.rms_f"),
            "head": ("lm_head",),
        },
        halves=False,
    ),
    Convention(
        "llama-2-jax",
        {
            "layer": ("model.decoder.{i}", "decoder.{i}"),
            "embed": ("model.embedding", "embedding"),
            "input_layernorm": ("input_norm",),
            "q_proj": ("attention.q_proj",),
            "k_proj": ("attention.k_proj",),
            "v_proj": ("attention.v_proj",),
            "o_proj": ("attention.out_proj",),
            "post_attention_layernorm": ("post_attn_norm",),
            "gate_proj": ("gate_proj",),
            "up_proj": ("up_proj",),
            "down_proj": ("down_proj",),
            "norm": ("model.norm", "norm"),
            "head": ("lm_head",),
        },
        halves=True,
    ),
)
_OUTSIDE = ("layer", "embed", "norm", "head")
# Of a convention's parts, how many must be there: less is a coincidence of names.
LEAST = 7
# What transformers' own Llama computes in functions.
_LLAMA = "transformers.models.llama.modeling_llama"
_FUNCTIONS: dict[str, Any] = {
    f"{_LLAMA}.apply_rotary_pos_emb()": [
        Tap("layers.{i}.q_rope", axes="BNTH", item=0),
        Tap("layers.{i}.k_rope", axes="BKTH", item=1),
    ],
    "torch.nn.functional.softmax():input": "layers.{i}.attn_scores",
    "torch.nn.functional.softmax()": "layers.{i}.attn_probs",
}


def auto_names(module: Any, config: ConfigLike) -> dict[str, Any]:
    """Return the map of names of a module that is named as a known library's.

    It is a dict to add to, for what lies in functions: rotations, scores and weights of attention.

    Args:
        module: a PyTorch or NNX module.
        config: of the checkpoint, as `from_nnx` takes it.

    Raises:
        InputError: it is named as none of them.
    """
    return choose_names(module, as_config(config).num_hidden_layers)[0]


def choose_names(module: Any, layers: int) -> tuple[dict[str, Any], str]:
    """Return the map of names, and in a sentence whose it is and what it lacks."""
    found = [(one, _resolved(module, one, layers)) for one in CONVENTIONS]
    chosen, places = max(found, key=lambda pair: len(pair[1]))
    lacking = [part for part in chosen.parts if part not in places]
    if "layer" not in places or len(places) < LEAST:
        raise InputError(
            f"names='auto': {type(module).__name__} is named as none of "
            f"{', '.join(one.name for one in CONVENTIONS)}; nearest is {chosen.name}, and it has "
            f"no {', '.join(chosen.parts[part][0] for part in lacking[:3])}; give names="
        )
    names = _names(module, chosen, places)
    said = [f"{part} ({' or '.join(chosen.parts[part])} is not there)" for part in lacking]
    if not chosen.halves:
        said.append("q_proj, k_proj (names do not tell how pairs lie: give axes BT(NH) or BT(NR2))")
    if type(module).__module__.startswith(_LLAMA):
        names |= _FUNCTIONS
    else:
        said.append(
            "q_rope, k_rope, attn_scores, attn_probs (functions: name them beside auto_names)"
        )
    return names, f"names are {chosen.name}'s; not mapped: {'; '.join(said) or 'nothing'}"


def _resolved(module: Any, convention: Convention, layers: int) -> dict[str, str]:
    """Return where the parts are that a module has, with `{i}` for the layer."""
    found: dict[str, str] = {}
    for part, candidates in convention.parts.items():
        if part not in _OUTSIDE:
            if "layer" not in found:
                continue
            candidates = tuple(f"{found['layer']}.{one}" for one in candidates)
        for place in candidates:
            paths = [place.replace("{i}", str(i)) for i in range(layers if "{i}" in place else 1)]
            if all(_part(module, path) is not None for path in paths):
                found[part] = place
                break
    return found


def _part(module: Any, path: str) -> Any:
    try:
        inner = walk(module, path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    return inner if callable(inner) and not isinstance(inner, type) else None


def _names(module: Any, convention: Convention, places: Mapping[str, str]) -> dict[str, Any]:
    def heads(part: str, letter: str) -> str | None:
        inner = _part(module, places[part].replace("{i}", "0"))
        return None if _has_heads_apart(inner) else f"BT({letter}H)"

    names: dict[str, Any] = {places["layer"]: Tap("layers.{i}.output", item=ONLY)}
    names[f"{places['layer']}:input"] = "layers.{i}.input"
    for part, place in places.items():
        if part in ("embed", "norm"):
            names[place] = part
        elif part in ("input_layernorm", "post_attention_layernorm", "gate_proj", "up_proj"):
            names[place] = f"layers.{{i}}.{part}"
        elif part in ("q_proj", "k_proj", "v_proj") and (convention.halves or part == "v_proj"):
            letter = "N" if part == "q_proj" else "K"
            names[place] = Tap(f"layers.{{i}}.{part}", axes=heads(part, letter))
    if "post_attention_layernorm" in places:
        names[f"{places['post_attention_layernorm']}:input"] = "layers.{i}.post_attention"
    if "o_proj" in places:
        names[f"{places['o_proj']}:input"] = Tap(
            "layers.{i}.attn_context", axes=heads("o_proj", "N")
        )
        names[places["o_proj"]] = "layers.{i}.o_proj"
    if "down_proj" in places:
        names[f"{places['down_proj']}:input"] = "layers.{i}.mlp_act"
        names[places["down_proj"]] = "layers.{i}.down_proj"
    head: Any = (
        {places["head"]: "logits"} if "head" in places else {"output": Tap("logits", item=ONLY)}
    )
    return names | head


def _has_heads_apart(inner: Any) -> bool:
    """Return whether a projection's weight has an axis of heads of its own."""
    if hasattr(inner, "named_parameters"):
        return any(weight.ndim > 2 for weight in inner.parameters())
    shapes = [getattr(value, "shape", ()) for value in vars(inner).values()]
    return any(len(shape) > 2 for shape in shapes)
