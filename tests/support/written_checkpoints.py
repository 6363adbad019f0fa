"""A model written in every format, by each format's own library or by hand.

The weights and the config are `tiny`'s with two layers; nothing here is jaxllama's writer but for
Orbax's, whose layout is jaxllama's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file

from jaxllama.checkpoint import Checkpoint, convert, tiny

RANKS = 2
META = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
GGUF = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def model(**overrides: Any) -> Checkpoint:
    return tiny(num_hidden_layers=2, **overrides)


def weights_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def write_hf(checkpoint: Checkpoint, path: Path, **fields: Any) -> Path:
    """Write safetensors, and a config.json as transformers 5 has it."""
    path.mkdir(parents=True)
    c, scaling = checkpoint.config, checkpoint.config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if scaling is not None:
        rope |= {k: v for k, v in vars(scaling).items() if k != "kind" and v is not None}
        rope["rope_type"] = scaling.kind
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    same += ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings")
    same += ("max_position_embeddings", "bos_token_id", "pad_token_id")
    content = {name: getattr(c, name) for name in same} | {"eos_token_id": list(c.eos_token_ids)}
    content |= {"model_type": "llama", "hidden_act": "silu", "rope_parameters": rope, **fields}
    (path / "config.json").write_text(json.dumps(content))
    save_file(weights_of(checkpoint), path / "model.safetensors", {"format": "pt"})
    return path


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in neighbouring pairs, one by one."""
    size = len(weight) // heads
    rows = [
        h * size + pair + half * size // 2
        for h in range(heads)
        for pair in range(size // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def write_meta(checkpoint: Checkpoint, path: Path, ranks: int = RANKS) -> Path:
    """Write params.json and one file a rank."""
    path.mkdir(parents=True)
    c = checkpoint.config
    params = {"dim": c.hidden_size, "n_layers": c.num_hidden_layers, "vocab_size": c.vocab_size}
    params |= {"n_heads": c.num_attention_heads, "n_kv_heads": c.num_key_value_heads}
    params |= {"norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta, "use_scaled_rope": True}
    params |= {"multiple_of": c.intermediate_size, "ffn_dim_multiplier": 0.5}
    (path / "params.json").write_text(json.dumps(params))
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, weight in weights_of(checkpoint).items():
        at = name.removeprefix("model.")
        for ours, theirs in META.items():
            at = at.replace(f"{ours}.weight", f"{theirs}.weight")
        if name.endswith("q_proj.weight"):
            weight = interleaved(weight, c.num_attention_heads)
        if name.endswith("k_proj.weight"):
            weight = interleaved(weight, c.num_key_value_heads)
        axis = int(name.endswith(("o_proj.weight", "down_proj.weight")))
        split = [weight] * ranks if weight.ndim == 1 else np.split(weight, ranks, axis)
        for rank, part in zip(parts, split, strict=True):
            rank[at] = torch.from_numpy(np.ascontiguousarray(part))
    for number, rank in enumerate(parts):
        torch.save(rank, path / f"consolidated.{number:02}.pth")
    return path


def write_gguf(checkpoint: Checkpoint, path: Path, **splitting: Any) -> Path:
    """Write a file whose gates are Q8_0, llama3's divisors as `convert_hf_to_gguf.py` has them.

    Args:
        checkpoint: what is written.
        path: the file; of a split model what its parts are called after.
        splitting: how the writer splits it: `split_max_tensors`, `small_first_shard`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    c, scaling = checkpoint.config, checkpoint.config.rope_scaling
    writer = gguf.GGUFWriter(path, "llama", **splitting)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_position_embeddings or 1)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_bos_token_id(c.bos_token_id)
    writer.add_eos_token_id(c.eos_token_ids[0])
    writer.add_pad_token_id(c.pad_token_id)
    if scaling is not None:
        writer.add_tensor("rope_freqs.weight", divisors(c.rope_theta, c.head_dim, scaling.factor))
    for name, weight in weights_of(checkpoint).items():
        at = name
        for ours, theirs in GGUF.items():
            at = at.replace(f"{ours}.", f"{theirs}.")
        if name.endswith("q_proj.weight"):
            weight = interleaved(weight, c.num_attention_heads)
        if name.endswith("k_proj.weight"):
            weight = interleaved(weight, c.num_key_value_heads)
        if name.endswith("gate_proj.weight"):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(at, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(at, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def divisors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """Return what llama3 scaling divides frequencies by, loop by loop, in float32."""
    found = []
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / head_dim)
        if wavelength < 8192 / 4.0:
            found.append(1.0)
        elif wavelength > 8192 / 1.0:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def write_orbax(checkpoint: Checkpoint, path: Path) -> Path:
    convert(checkpoint, path, to="orbax")
    return path


def write_all(checkpoint: Checkpoint, directory: Path) -> dict[str, Path]:
    """Return where the model lies in each format."""
    return {
        "hf": write_hf(checkpoint, directory / "hf"),
        "meta": write_meta(checkpoint, directory / "meta"),
        "gguf": write_gguf(checkpoint, directory / "model.gguf"),
        "orbax": write_orbax(checkpoint, directory / "orbax"),
    }
