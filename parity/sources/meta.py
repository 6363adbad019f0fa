"""Meta's directories: params.json by Meta's rules, weights by `torch.load`, ranks joined."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from parity.sources.config import Scaling, SourceConfig, end_tokens, token_or_none
from parity.sources.hf import read_object
from parity.sources.names import EMBEDDING, HEAD, in_halves, meta_name, plain_names, rotated_heads
from parity.sources.source import Source

PARAMS, MANIFEST = "params.json", "jaxllama_manifest.json"
_MAPPED_BYTES = 1 << 28
# Split by their inputs; all other matrices by their outputs.
_BY_COLUMNS = ("o_proj.weight", "down_proj.weight")


def open_meta(path: Path) -> Source:
    """Open a directory with params.json and consolidated.NN.pth."""
    ranks = [_Rank(file) for file in sorted(path.glob("consolidated.*.pth"))]
    params = read_object(path / PARAMS)
    manifest = path / MANIFEST
    beside = read_object(manifest)["config"] if manifest.exists() else {}
    stated = _config(params, beside, ranks)

    def read(name: str) -> np.ndarray:
        heads = rotated_heads(name, stated)
        joined = _joined(name, ranks, stated)
        return joined if heads is None else in_halves(joined, heads)

    return Source(
        path=path,
        format="meta",
        stated=stated,
        hf_config=stated.to_hf(),
        reader=read,
        place=lambda name: f"{ranks[0].file.name}: {meta_name(name)}",
    )


class _Rank:
    """One file, mapped; let go of now and then, since pages that were read count as memory."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._mapped: dict[str, torch.Tensor] = {}
        self._touched = 0
        self._stored = plain_names(self._tensors(), (meta_name(EMBEDDING),))
        tensors = self._tensors()
        self.shapes = {name: tuple(tensors[at].shape) for name, at in self._stored.items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        if not self._mapped or self._touched > _MAPPED_BYTES:
            self._mapped, self._touched = {}, 0
            self._mapped = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
        return self._mapped

    def read(self, name: str) -> np.ndarray:
        """Return a view of a tensor."""
        tensor = self._tensors()[self._stored[name]]
        self._touched += tensor.nbytes
        if tensor.dtype == torch.bfloat16:  # NumPy itself has none
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _joined(name: str, ranks: list[_Rank], config: SourceConfig) -> np.ndarray:
    """Return a tensor of all ranks, in Meta's layout.

    Source: the column- and row-parallel layers of `Attention` and `FeedForward` in Meta's llama3
    `model.py`; ranks beyond the count of key heads repeat them.
    """
    at = meta_name(name)
    parts = [rank.read(at) for rank in ranks]
    if parts[0].ndim == 1 or len(parts) == 1:
        return parts[0].copy()
    if name.endswith(_BY_COLUMNS):
        return np.concatenate(parts, axis=1)
    if name == EMBEDDING and parts[0].shape[1] != config.hidden_size:  # as Llama 2 split it
        return np.concatenate(parts, axis=1)
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        parts = parts[:: max(1, len(ranks) // config.num_key_value_heads)]
    return np.concatenate(parts, axis=0)


def _config(
    params: Mapping[str, Any], manifest: Mapping[str, Any], ranks: list[_Rank]
) -> SourceConfig:
    """Read params.json, with what it has no place for from the weights and jaxllama's manifest.

    Source: `ModelArgs`, `FeedForward.__init__` and `apply_scaling` of Meta's llama-models. The
    factor of the scaling is 8 there; `rope_scaling_factor` is jaxllama's addition.
    """
    dim, heads = params["dim"], params["n_heads"]
    width = int(2 * 4 * dim / 3)
    if params.get("ffn_dim_multiplier") is not None:
        width = int(params["ffn_dim_multiplier"] * width)
    step = params["multiple_of"]
    rows, columns = ranks[0].shapes[meta_name(EMBEDDING)]
    rows *= len(ranks) if columns == dim else 1
    stated_rows = params.get("vocab_size")
    from_file = stated_rows is not None and stated_rows != -1
    scaling = None
    if params.get("use_scaled_rope"):
        scaling = Scaling(
            kind="llama3",
            factor=float(params.get("rope_scaling_factor") or 8),
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        )
    keys = {
        "vocab_size": "vocab_size" if from_file else "",
        "hidden_size": "dim",
        "intermediate_size": "dim, multiple_of, ffn_dim_multiplier",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": "dim / n_heads",
        "rms_norm_eps": "norm_eps",
        "rope_theta": "rope_theta",
        "rope_scaling": "use_scaled_rope, rope_scaling_factor",
    }
    weights = f"{ranks[0].file.name}: tok_embeddings.weight"
    where = {name: f"{PARAMS}: {key}" if key else weights for name, key in keys.items()}
    where["tie_word_embeddings"] = f"{weights} and output.weight"
    where |= {
        name: f"{MANIFEST}: config.{key}"
        for name, key in {
            "max_position_embeddings": "max_position_embeddings",
            "bos_token_id": "bos_token_id",
            "eos_token_ids": "eos_token_id",
            "pad_token_id": "pad_token_id",
        }.items()
    }
    return SourceConfig(
        vocab_size=int(params["vocab_size"]) if from_file else rows,
        hidden_size=dim,
        intermediate_size=-(-width // step) * step,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=params["n_kv_heads"],
        head_dim=dim // heads,
        rms_norm_eps=float(params["norm_eps"]),
        rope_theta=float(params["rope_theta"]),
        rope_scaling=scaling,
        tie_word_embeddings=_is_tied(ranks),
        max_position_embeddings=manifest.get("max_position_embeddings"),
        bos_token_id=token_or_none(manifest.get("bos_token_id")),
        eos_token_ids=end_tokens(manifest.get("eos_token_id")),
        pad_token_id=token_or_none(manifest.get("pad_token_id")),
        where=where,
    )


def _is_tied(ranks: list[_Rank]) -> bool:
    """Return whether the head is absent, or the embedding once more: no field tells."""
    head, table = meta_name(HEAD), meta_name(EMBEDDING)
    if head not in ranks[0].shapes:
        return True
    for rank in ranks:
        if rank.shapes[head] != rank.shapes[table]:
            return False
        first, second = rank.read(head), rank.read(table)
        if first.dtype != second.dtype:
            return False
        # Heads of their own differ in the first rows: these are read alone.
        for at in range(0, len(first), 4096):
            if first[at : at + 4096].tobytes() != second[at : at + 4096].tobytes():
                return False
    return True
