"""Hugging Face directories: config.json by its published meaning, weights by `safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from jaxllama.files import inside
from parity.sources.config import Scaling, SourceConfig, end_tokens, token_or_none
from parity.sources.names import EMBEDDING, HEAD, plain_names
from parity.sources.source import Source

CONFIG = "config.json"


def open_hf(path: Path) -> Source:
    """Open a directory with config.json and safetensors."""
    content = read_object(path / CONFIG)
    stated = config_of(content, CONFIG)
    # transformers would take -1 for the embedding's last row.
    content = {**content, "pad_token_id": stated.pad_token_id}
    places = tensor_places(path)

    def read(name: str) -> np.ndarray:
        file, stored = places[name]
        with safe_open(file, framework="np") as shard:
            values: np.ndarray = shard.get_tensor(stored)
            return values

    def place(name: str) -> str:
        file, stored = places.get(name, (path, name))
        return f"{file if file is path else file.name}: {stored}"

    return Source(
        path=path, format="hf", stated=stated, hf_config=content, reader=read, place=place
    )


def tensor_places(directory: Path) -> dict[str, tuple[Path, str]]:
    """Return file and stored name of every tensor of a directory, by canonical name."""
    single = directory / "model.safetensors"
    if single.exists():  # transformers too takes it before an index that lies beside it
        shards = {single}
    else:
        weight_map = read_object(directory / "model.safetensors.index.json")["weight_map"]
        shards = {inside(directory, file) for file in weight_map.values()}
    files: dict[str, Path] = {}
    for file in sorted(shards):
        with safe_open(file, framework="np") as shard:
            files |= dict.fromkeys(shard.keys(), file)
    plain = plain_names(files, (EMBEDDING, EMBEDDING.removeprefix("model.")))
    return {
        # A bare model's file lacks the prefix.
        name if name == HEAD or name.startswith("model.") else f"model.{name}": (files[at], at)
        for name, at in plain.items()
    }


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def config_of(content: Mapping[str, Any], file: str) -> SourceConfig:
    """Read a config.json.

    Args:
        content: the file's object.
        file: what to call it.

    Source: `LlamaConfig` and `RotaryEmbeddingConfigMixin` of transformers: `rope_parameters` since
    version 5, `rope_theta` and `rope_scaling` before; `head_dim` is D / N where it is not stated.
    """
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    where = {
        name: f"{file}: {name}"
        for name in (
            *same,
            "rms_norm_eps",
            "tie_word_embeddings",
            "max_position_embeddings",
            "bos_token_id",
            "pad_token_id",
        )
    }
    where["eos_token_ids"] = f"{file}: eos_token_id"
    if content.get("head_dim") is None:
        head_dim = content["hidden_size"] // content["num_attention_heads"]
        where["head_dim"] = f"{file}: hidden_size / num_attention_heads"
    else:
        head_dim, where["head_dim"] = content["head_dim"], f"{file}: head_dim"
    key = "rope_parameters" if content.get("rope_parameters") else "rope_scaling"
    rope = content.get(key) or {}
    where["rope_scaling"] = f"{file}: {key}"
    spelled: dict[str, Any] = {f"{key}.rope_theta": rope.get("rope_theta")}
    spelled["rope_theta"] = content.get("rope_theta")
    spelled["rope_scaling.rope_theta"] = (content.get("rope_scaling") or {}).get("rope_theta")
    theta_key = next((name for name, value in spelled.items() if value is not None), "rope_theta")
    theta, where["rope_theta"] = spelled[theta_key], f"{file}: {theta_key}"
    return SourceConfig(
        **{name: content[name] for name in same},
        head_dim=head_dim,
        rms_norm_eps=float(content["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=_scaling(rope),
        tie_word_embeddings=content["tie_word_embeddings"],
        max_position_embeddings=content.get("max_position_embeddings"),
        bos_token_id=token_or_none(content.get("bos_token_id")),
        eos_token_ids=end_tokens(content.get("eos_token_id")),
        pad_token_id=token_or_none(content.get("pad_token_id")),
        where=where,
    )


def _scaling(rope: Mapping[str, Any]) -> Scaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return Scaling(kind="linear", factor=float(rope["factor"]))
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r}, expected default, linear or llama3")
    return Scaling(
        kind="llama3",
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=rope["original_max_position_embeddings"],
    )
