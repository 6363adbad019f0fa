"""Lay out a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.hf import COMPANIONS, CONFIG, INDEX, SINGLE
from jaxllama.checkpoint.layout import Layout, Piece
from jaxllama.checkpoint.safetensors_file import build_header


def lay_out_hf(
    checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype], *, shard_bytes: int | None = None
) -> Layout:
    """Plan the files of a Hugging Face directory.

    Args:
        checkpoint: what is to be written.
        dtypes: of every tensor once written, by canonical name.
        shard_bytes: weights per file; all in one file if not given. A larger tensor gets a file
            of its own.
    """
    shards: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, dtype in dtypes.items():
        shape = checkpoint.tensors[name].shape
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if shard_bytes is not None and shards[-1] and filled + nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = (dtype, shape)
        filled += nbytes
    layout = Layout()
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        head, length = build_header(shard)
        layout.add_file(file, head, length)
        at = len(head)
        for name, (dtype, shape) in shard.items():
            layout.pieces[name] = [Piece(file, at, dtype, cast)]
            at += int(np.prod(shape)) * dtype.itemsize
            weight_map[name] = file
    if len(shards) > 1:
        total = sum(layout.lengths.values()) - sum(len(h) for h in layout.heads.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        layout.small[INDEX] = json.dumps(index, indent=2).encode()
    layout.small[CONFIG] = json.dumps(hf_config(checkpoint, dtypes), indent=2).encode()
    for name, read in checkpoint.companions.items():
        if name in COMPANIONS:
            layout.small[name] = read()
    return layout


def hf_config(checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> dict:
    """Return the dict of config.json, with the dtype most of the weights have."""
    config = dict(checkpoint.config.to_hf())
    count: dict[str, int] = {}
    for name, dtype in dtypes.items():
        count[dtype.name] = count.get(dtype.name, 0) + int(np.prod(checkpoint.tensors[name].shape))
    if count:
        # Both spellings: transformers 5 reads `dtype`, 4 `torch_dtype`.
        config["dtype"] = config["torch_dtype"] = max(count, key=lambda name: count[name])
    return config
