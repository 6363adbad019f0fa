"""Lay out a checkpoint as one GGUF file of F32, F16 and BF16 tensors.

The file's head is made here and not by the `gguf` package, whose writer takes the tensors' data
along; values are encoded as its reader, llama.cpp's and transformers' expect them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from functools import partial
from typing import Any

import gguf
import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.gguf.file import MAGIC, PLAIN
from jaxllama.checkpoint.gguf.read import CARRIED, ROPE_FREQS, WIDENED
from jaxllama.checkpoint.gguf.tokenizer import MODEL, tokenizer_metadata
from jaxllama.checkpoint.layout import Layout, Piece, byte_size, store_as_is
from jaxllama.checkpoint.names import entry_of, heads_of, interleave, to_dialect
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.hf import carried_fields
from jaxllama.errors import CheckpointError

FILE = "model.gguf"
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_ENCODING = {dtype: encoding for encoding, dtype in PLAIN.items()}
_F32 = np.dtype(np.float32)
_Type = gguf.GGUFValueType
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}


def lay_out_gguf(checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> Layout:
    """Plan a GGUF file.

    Norms narrower than float32 are widened, which loses nothing, since llama.cpp computes with
    norms in float32 only; a key of our own remembers what they were.

    Raises:
        CheckpointError: a tensor is float64, which llama.cpp cannot compute with.
    """
    wide = [name for name, dtype in dtypes.items() if dtype == np.float64]
    if wide:
        raise CheckpointError(
            f"{checkpoint.label}: {wide[0]} and {len(wide) - 1} more are float64, which GGUF "
            "models cannot have; give --dtype float32 or narrower"
        )
    stored: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    widened = []
    for name, dtype in dtypes.items():
        shape, at = checkpoint.tensors[name].shape, to_dialect(name, "gguf")
        if len(shape) == 1 and dtype != _F32:
            widened.append(f"{at}={dtype.name}")
            dtype = _F32
        stored[at] = (dtype, shape)
    factors = _rope_factors(checkpoint.config)
    if factors is not None:
        stored[ROPE_FREQS] = (_F32, factors.shape)
    metadata = _metadata(checkpoint, dtypes) | ({WIDENED: widened} if widened else {})
    if carried := carried_fields(checkpoint.hf_config):
        metadata[CARRIED] = json.dumps(carried)
    head, offsets, length = _build_head(metadata, stored)
    frame = [(0, head)]
    if factors is not None:
        frame.append((offsets[ROPE_FREQS], factors.tobytes()))
    layout = Layout()
    if checkpoint.tokenizer_loader and MODEL not in metadata:
        layout.notes.append("the tokenizer is of a kind that GGUF has no name for: not written")
    layout.add_file(FILE, frame, length)
    for name in dtypes:
        entry, at = entry_of(name), to_dialect(name, "gguf")
        transform = store_as_is
        if entry.rotary is not None:
            transform = partial(interleave, heads=heads_of(entry, checkpoint.config))
        elif stored[at][0] != dtypes[name]:
            transform = _widen
        layout.pieces[name] = [Piece(FILE, offsets[at], transform)]
    return layout


def _widen(values: np.ndarray) -> np.ndarray:
    return values.astype(_F32)


def _rope_factors(config: LlamaConfig) -> np.ndarray | None:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    half = config.head_dim // 2
    unscaled = config.rope_theta ** -(np.arange(half) / half)
    return scaling.frequency_factors(unscaled).astype(np.float32)


def _metadata(checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
    count: dict[str, int] = {}
    for name, dtype in dtypes.items():
        size = math.prod(checkpoint.tensors[name].shape)
        count[dtype.name] = count.get(dtype.name, 0) + size
    config = checkpoint.config
    metadata = {
        **config.to_gguf(),
        "general.type": "model",
        "general.file_type": _FILE_TYPES[max(count, key=lambda name: count[name])],
        "general.alignment": _ALIGNMENT,
    }
    if "llama.context_length" not in metadata:
        # Readers require it; 2048 is what llama.cpp's own converter falls back to.
        metadata["llama.context_length"] = 2048
    tokens = tokenizer_metadata(checkpoint)
    # The configuration's own special tokens win over the tokenizer's.
    return tokens | metadata


def _build_head(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
) -> tuple[bytes, dict[str, int], int]:
    """Return the file's first bytes, every tensor's offset in it, and its length in bytes."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, content = _encode(value)
        parts += [_string(key), struct.pack("<I", kind), content]
    relative, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        relative[name] = at
        parts += [_string(name), struct.pack("<I", len(shape))]
        parts += [struct.pack("<Q", length) for length in reversed(shape)]
        parts.append(struct.pack("<IQ", _ENCODING[dtype], at))
        at += _padded(byte_size(shape, dtype))
    head = b"".join(parts)
    start = _padded(len(head))
    return head, {name: start + offset for name, offset in relative.items()}, start + at


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode(value: Any) -> tuple[int, bytes]:
    """Return a metadata value's type and bytes, with the widths that the format's writers use."""
    if isinstance(value, bool):
        return _Type.BOOL, struct.pack("?", value)
    if isinstance(value, int):
        return _Type.UINT32, struct.pack("<I", value)
    if isinstance(value, float):
        return _Type.FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _Type.STRING, _string(value)
    kind = _Type.STRING if value and isinstance(value[0], str) else _Type.INT32
    items = [_string(item) if kind == _Type.STRING else struct.pack("<i", item) for item in value]
    return _Type.ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items)
