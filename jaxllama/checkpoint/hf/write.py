"""Lay out a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.hf.read import COMPANIONS, CONFIG, INDEX, SINGLE
from jaxllama.checkpoint.hf.safetensors_file import build_header
from jaxllama.checkpoint.layout import Layout, Piece, byte_size, split_evenly, store_as_is
from jaxllama.config_formats.hf import carried_fields

# transformers' own default for one file.
_SHARD_BYTES = 5_000_000_000


def lay_out_hf(
    checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype], *, shards: int | None = None
) -> Layout:
    """Plan the files of a Hugging Face directory.

    Args:
        checkpoint: what is to be written.
        dtypes: of every tensor once written, by canonical name.
        shards: number of weights files; as few as keep each below 5 GB if not given.
    """
    shapes = {name: checkpoint.tensors[name].shape for name in dtypes}
    nbytes = {name: byte_size(shapes[name], dtype) for name, dtype in dtypes.items()}
    total = sum(nbytes.values())
    runs = split_evenly(nbytes, shards or -(-total // _SHARD_BYTES) or 1)
    layout, weight_map = Layout(), {}
    for number, run in enumerate(runs, 1):
        file = SINGLE if len(runs) == 1 else f"model-{number:05}-of-{len(runs):05}.safetensors"
        head, length = build_header({name: (dtypes[name], shapes[name]) for name in run})
        layout.add_file(file, [(0, head)], length)
        at = len(head)
        for name in run:
            layout.pieces[name] = [Piece(file, at, store_as_is)]
            weight_map[name] = file
            at += nbytes[name]
    if len(runs) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        layout.small[INDEX] = json.dumps(index, indent=2).encode()
    layout.small[CONFIG] = json.dumps(hf_config(checkpoint, dtypes), indent=2).encode()
    layout.small |= companion_files(checkpoint)
    return layout


def hf_config(checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
    """Return the dict of config.json, with the dtype that most of the weights have.

    What the source's says besides, such as `initializer_range`, is kept.
    """
    config = {**checkpoint.config.to_hf(), **carried_fields(checkpoint.hf_config)}
    count: dict[str, int] = {}
    for name, dtype in dtypes.items():
        size = byte_size(checkpoint.tensors[name].shape, np.dtype(np.uint8))
        count[dtype.name] = count.get(dtype.name, 0) + size
    if count:
        # Both spellings: transformers 5 reads `dtype`, 4 `torch_dtype`.
        config["dtype"] = config["torch_dtype"] = max(count, key=lambda name: count[name])
    return config


def companion_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Read the tokenizer and generation files to carry along."""
    return {name: read() for name, read in checkpoint.companions.items() if name in COMPANIONS}
