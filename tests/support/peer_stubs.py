"""Stand-ins for published Llamas: the names that their releases have, and nothing computed.

An adapter that asks for a class, a loader, a module or a function by another name finds none here.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

LAYERS = 3


def installed(patch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Put a module of some content among those that can be imported, and the packages it is in."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        path = ".".join(parts[:n])
        if path not in sys.modules:
            module = ModuleType(path)
            module.__path__ = []
            patch.setitem(sys.modules, path, module)
            if n > 1:
                patch.setattr(sys.modules[".".join(parts[: n - 1])], parts[n - 1], module, False)
    for attribute, value in content.items():
        patch.setattr(sys.modules[name], attribute, value, raising=False)


def layered(names: Sequence[str]) -> list[str]:
    """Return names with `{i}` for every layer."""
    return [
        name.replace("{i}", str(i))
        for name in names
        for i in (range(LAYERS) if "{i}" in name else range(1))
    ]


class Leaf(torch.nn.Module):
    """A PyTorch module that gives back what it gets."""

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        return x


def torch_tree(root: torch.nn.Module, names: Sequence[str]) -> None:
    """Give a module parameters under dotted names, each in modules of its own."""
    for name in layered(names):
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, Leaf())
            at = at.get_submodule(part)
        setattr(at, last, torch.nn.Parameter(torch.zeros(1)))
    for holder in [one for one in root.modules() if "0" in dict(one.named_children())]:
        _listed(root, holder)


def _listed(root: torch.nn.Module, holder: torch.nn.Module) -> None:
    """Let what holds numbered modules be a list of them."""
    place = next(name for name, module in root.named_modules() if module is holder)
    parent, _, last = place.rpartition(".")
    setattr(root.get_submodule(parent), last, torch.nn.ModuleList(holder.children()))


class Node(nnx.Module):
    """A Flax module that gives back what it gets."""

    def __call__(self, x: Any, *_: Any, **__: Any) -> Any:
        return x


def nnx_tree(root: Any, names: Sequence[str]) -> None:
    """Give an object modules and parameters under dotted names; `layers` is a list."""
    for name in layered(names):
        at, path = root, name.split(".")
        for part, following in itertools.pairwise(path):
            if part.isdigit():
                while len(at) <= int(part):
                    at.append(Node())
                at = at[int(part)]
                continue
            if not hasattr(at, part):
                setattr(at, part, nnx.List([]) if following == "0" else Node())
            at = getattr(at, part)
        setattr(at, path[-1], nnx.Param(np.zeros(1)))


def litgpt(patch: pytest.MonkeyPatch, norm: str = "norm_1") -> list[Any]:
    """Stand in for LitGPT 0.5.13; return what its converter was given."""
    given: list[Any] = []
    names = [
        "transformer.wte.weight", "transformer.h.{i}." + norm + ".weight", "lm_head.weight",
        "transformer.h.{i}.attn.qkv.weight", "transformer.h.{i}.attn.proj.weight",
        "transformer.h.{i}.norm_2.weight", "transformer.h.{i}.mlp.fc_1.weight",
        "transformer.h.{i}.mlp.fc_2.weight", "transformer.h.{i}.mlp.proj.weight",
        "transformer.ln_f.weight",
    ]  # fmt: skip

    class GPT(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config
            torch_tree(self, names)

        def clear_kv_cache(self) -> None: ...

        def set_kv_cache(self, batch_size: int, max_seq_length: int, *, dtype: Any) -> None:
            for block in self.transformer.h:
                block.attn.kv_cache = (batch_size, max_seq_length)

        def forward(self, idx: Any, input_pos: Any = None) -> Any:
            given.append((idx, input_pos))
            return idx

    def copy_weights_hf_llama(config: Any, qkv: Any, state: Any, weights: Any) -> None:
        given.append((config, sorted(weights)))
        state.update({name: torch.zeros(1) for name in layered(names)})

    class KVCache:
        def forward(self, input_pos: Any, k: Any, v: Any) -> Any: ...

    installed(patch, "litgpt", GPT=GPT, Config=SimpleNamespace)
    installed(patch, "litgpt.model", apply_rope=lambda x, cos, sin: x, KVCache=KVCache)
    installed(
        patch, "litgpt.scripts.convert_hf_checkpoint", copy_weights_hf_llama=copy_weights_hf_llama
    )
    return given


def torchtune(patch: pytest.MonkeyPatch, norm: str = "sa_norm") -> list[Any]:
    """Stand in for torchtune 0.6.1; return which builder was called, and the converter's heads."""
    given: list[Any] = []
    attention = [f"layers.{{i}}.attn.{part}_proj.weight" for part in ("q", "k", "v", "output")]
    names = [
        "tok_embeddings.weight", *attention, "layers.{i}." + norm + ".scale",
        "layers.{i}.mlp_norm.scale", "layers.{i}.mlp.w1.weight", "layers.{i}.mlp.w2.weight",
        "layers.{i}.mlp.w3.weight", "norm.scale", "output.weight",
    ]  # fmt: skip

    class TransformerDecoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch_tree(self, names)

        def setup_caches(self, batch_size: int, dtype: Any, *, decoder_max_seq_len: int) -> None:
            for layer in self.layers:
                layer.attn.kv_cache = (batch_size, decoder_max_seq_len)

        def forward(self, tokens: Any, *, mask: Any, input_pos: Any) -> Any:
            given.append((tokens, mask, input_pos))
            return tokens

    def builder(name: str) -> Any:
        def build(
            vocab_size: int, num_layers: int, num_heads: int, num_kv_heads: int, embed_dim: int,
            max_seq_len: int, attn_dropout: float = 0.0, rope_base: int = 500_000,
            intermediate_dim: int | None = None, norm_eps: float = 1e-5, **factor: Any,
        ) -> TransformerDecoder:  # fmt: skip
            given.append((name, factor))
            return TransformerDecoder()

        return build

    def hf_to_tune(
        state_dict: Any, num_heads: int, num_kv_heads: int, dim: int, head_dim: int
    ) -> dict[str, Any]:
        given.append((num_heads, num_kv_heads, dim, head_dim))
        return {name: torch.zeros(1) for name in layered(names)}

    class KVCache:
        def update(self, k_val: Any, v_val: Any) -> Any: ...

    for version in ("llama3", "llama3_1", "llama3_2"):
        installed(patch, f"torchtune.models.{version}", **{version: builder(version)})
    installed(patch, "torchtune.models.convert_weights", hf_to_tune=hf_to_tune)
    installed(patch, "torchtune.modules", KVCache=KVCache)
    return given


def keras_hub(patch: pytest.MonkeyPatch, norm: str = "_self_attention_layernorm") -> list[Any]:
    """Stand in for KerasHub 0.32; return what its loader and its model were given."""
    given: list[Any] = []
    layer = "backbone.transformer_layers.{i}"
    dense = [f"{layer}._self_attention_layer._{part}_dense.kernel"
             for part in ("query", "key", "value", "output")]  # fmt: skip
    names = [
        "backbone.token_embedding.embeddings", f"{layer}.{norm}.scale", *dense,
        f"{layer}._self_attention_layer.rotary_embedding_layer.none", "backbone.layer_norm.scale",
        f"{layer}._feedforward_layernorm.scale", f"{layer}._feedforward_gate_dense.kernel",
        f"{layer}._feedforward_intermediate_dense.kernel",
        f"{layer}._feedforward_output_dense.kernel",
    ]  # fmt: skip

    class Llama3CausalLM(nnx.Module):
        compute_dtype = "float32"

        @classmethod
        def from_preset(cls, preset: str, *, preprocessor: Any, dtype: str) -> Any:
            given.append((sorted(_files(preset)), dtype))
            model = cls()
            nnx_tree(model, names)
            for name, value in (
                ("num_layers", LAYERS),
                ("hidden_dim", 96),
                ("num_query_heads", 6),
                ("num_key_value_heads", 2),
            ):
                setattr(model.backbone, name, value)
            return model

        def call_with_cache(self, token_ids: Any, cache: Any, cache_update_index: int) -> Any:
            given.append((token_ids.shape, cache.shape, cache_update_index))
            return token_ids, None, cache

    installed(patch, "keras_hub.models", Llama3CausalLM=Llama3CausalLM)
    installed(patch, "keras.ops", slice_update=lambda inputs, start, updates: inputs)
    return given


def skyrl(patch: pytest.MonkeyPatch, norm: str = "input_layernorm") -> list[Any]:
    """Stand in for skyrl-tx 0.3; return what its loader and its model were given."""
    given: list[Any] = []
    layer = "model.layers.{i}"
    kernels = [f"{layer}.self_attn.{part}_proj.kernel" for part in "qkvo"]
    kernels += [f"{layer}.mlp.{part}_proj.kernel" for part in ("gate", "up", "down")]
    names = [
        "model.embed_tokens.embedding", f"{layer}.{norm}.weight", *kernels, "model.norm.weight",
        f"{layer}.post_attention_layernorm.weight", "lm_head.kernel",
    ]  # fmt: skip

    class Llama3ForCausalLM(nnx.Module):
        def __init__(self, config: Any, *, dtype: Any, rngs: Any) -> None:
            nnx_tree(self, names)

        def __call__(self, input_ids: Any, *, attention_mask: Any, positions: Any) -> Any:
            given.append((input_ids, attention_mask, positions))
            return SimpleNamespace(last_hidden_state=input_ids)

        def compute_logits(self, hidden_states: Any) -> Any:
            return hidden_states

    class ModelConfig:
        def __init__(
            self, base: Any, *, max_lora_adapters: int, max_lora_rank: int,
            shard_attention_heads: bool,
        ) -> None: ...  # fmt: skip

    def load_safetensors(checkpoint_dir: Any, config: Any, model: Any) -> None:
        given.append(sorted(_files(checkpoint_dir)))

    installed(patch, "tx.models.configs", ModelConfig=ModelConfig)
    installed(
        patch,
        "tx.models.llama3",
        Llama3ForCausalLM=Llama3ForCausalLM,
        apply_rope=lambda inputs, position_ids, head_dim, theta: inputs,
    )
    installed(patch, "tx.utils.models", load_safetensors=load_safetensors)
    return given


def _files(directory: Any) -> set[str]:
    """Return what of a checkpoint lies in a directory."""
    from pathlib import Path

    return {path.name for path in Path(directory).iterdir()} & {"config.json", "model.safetensors"}
