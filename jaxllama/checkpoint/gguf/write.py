"""Lay out a checkpoint as GGUF files of F32, F16, BF16 and quantised tensors.

The file's head is made here and not by the `gguf` package, whose writer takes the tensors' data
along; values are encoded as its reader, llama.cpp's and transformers' expect them.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from functools import partial
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Encoding

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.gguf.file import MAGIC, PLAIN
from jaxllama.checkpoint.gguf.parts import part_metadata, part_name
from jaxllama.checkpoint.gguf.quantise import encoded_size, quantise
from jaxllama.checkpoint.gguf.read import CARRIED, ROPE_FREQS, WIDENED
from jaxllama.checkpoint.gguf.tokenizer import MODEL, tokenizer_metadata
from jaxllama.checkpoint.layout import Layout, Piece, split_evenly
from jaxllama.checkpoint.names import entry_of, heads_of, interleave, to_dialect
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.hf import carried_fields
from jaxllama.errors import CheckpointError, argument

MODEL_NAME = "model"
FILE = f"{MODEL_NAME}.gguf"
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_ENCODING = {dtype: encoding for encoding, dtype in PLAIN.items()}
_F32 = np.dtype(np.float32)
_Type = gguf.GGUFValueType
_WIDTHS = {np.dtype(np.uint16): _Type.UINT16, np.dtype(np.int32): _Type.INT32}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
Stored = dict[str, tuple[Encoding, tuple[int, ...]]]


def lay_out_gguf(
    checkpoint: Checkpoint,
    dtypes: Mapping[str, np.dtype],
    *,
    shards: int | None = None,
    quantised: Mapping[str, Encoding] | None = None,
) -> Layout:
    """Plan a GGUF file, or the files of a model that is split.

    Norms narrower than float32 are widened, which loses nothing, since llama.cpp computes with
    norms in float32 only; a key of our own remembers what they were.

    Args:
        checkpoint: what is to be written.
        dtypes: of every tensor once it is read again, by canonical name.
        shards: number of files, for a name of its own each; one file if not given.
        quantised: encodings of the tensors that are quantised, by canonical name.

    Raises:
        CheckpointError: a tensor is float64, which llama.cpp cannot compute with.
    """
    quantised = quantised or {}
    wide = [name for name, dtype in dtypes.items() if dtype == np.float64]
    if wide:
        raise CheckpointError(
            f"{checkpoint.label}: {wide[0]} and {len(wide) - 1} more are float64, which GGUF "
            f"models cannot have; give {argument('dtype', 'f32')} or narrower"
        )
    stored: Stored = {}
    widened = []
    for name, dtype in dtypes.items():
        shape, at = checkpoint.tensors[name].shape, to_dialect(name, "gguf")
        if len(shape) == 1 and dtype != _F32:
            widened.append(f"{at}={dtype.name}")
            dtype = _F32
        stored[at] = (quantised.get(name, _ENCODING[dtype]), shape)
    factors = _rope_factors(checkpoint.config)
    if factors is not None:
        stored[ROPE_FREQS] = (_ENCODING[_F32], factors.shape)
    metadata = _metadata(checkpoint, stored) | ({WIDENED: widened} if widened else {})
    if carried := carried_fields(checkpoint.hf_config):
        metadata[CARRIED] = json.dumps(carried)
    layout = Layout()
    if checkpoint.tokenizer_loader and MODEL not in metadata:
        layout.notes.append("the tokenizer is of a kind that GGUF has no name for: not written")
    places = _add_files(layout, metadata, stored, shards)
    if factors is not None:
        file, offset = places[ROPE_FREQS]
        layout.frames[file].append((offset, factors.tobytes()))
    for name in dtypes:
        entry, at = entry_of(name), to_dialect(name, "gguf")
        heads = None if entry.rotary is None else heads_of(entry, checkpoint.config)
        transform = partial(_stored_values, heads=heads, encoding=stored[at][0])
        layout.pieces[name] = [Piece(*places[at], transform)]
    return layout


def _add_files(
    layout: Layout, metadata: Mapping[str, Any], stored: Stored, shards: int | None
) -> dict[str, tuple[str, int]]:
    """Plan one file or several, and return each tensor's file and offset in it."""
    if shards is None:
        runs, names = [list(stored)], [FILE]
    else:
        runs = split_evenly(
            {n: encoded_size(shape, encoding) for n, (encoding, shape) in stored.items()}, shards
        )
        names = [part_name(MODEL_NAME, i, len(runs)) for i in range(1, len(runs) + 1)]
    places: dict[str, tuple[str, int]] = {}
    for number, (file, run) in enumerate(zip(names, runs, strict=True), 1):
        keys = dict(metadata) if number == 1 else {}
        if shards is not None:
            keys |= part_metadata(number, len(runs), len(stored))
        head, offsets, length = _build_head(keys, {name: stored[name] for name in run})
        layout.add_file(file, [(0, head)], length)
        layout.heads[file] = hashlib.sha256(head).hexdigest()
        places |= {name: (file, offsets[name]) for name in run}
    return places


def _stored_values(values: np.ndarray, *, heads: int | None, encoding: Encoding) -> np.ndarray:
    """Return a canonical tensor as it is stored."""
    if heads is not None:
        values = interleave(values, heads)
    if encoding not in PLAIN:
        return quantise(values, encoding)
    return values.astype(PLAIN[encoding], copy=False)  # norms alone are of another dtype


def _rope_factors(config: LlamaConfig) -> np.ndarray | None:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    half = config.head_dim // 2
    unscaled = config.rope_theta ** -(np.arange(half) / half)
    return scaling.frequency_factors(unscaled).astype(np.float32)


def _metadata(checkpoint: Checkpoint, stored: Stored) -> dict[str, Any]:
    count: dict[str, int] = {}
    for encoding, shape in stored.values():
        count[encoding.name] = count.get(encoding.name, 0) + math.prod(shape)
    config = checkpoint.config
    metadata = {
        **config.to_gguf(),
        "general.type": "model",
        "general.file_type": _FILE_TYPES[max(count, key=lambda name: count[name])],
        "general.alignment": _ALIGNMENT,
    }
    if any(encoding not in PLAIN for encoding, _ in stored.values()):
        metadata["general.quantization_version"] = gguf.GGML_QUANT_VERSION
    if "llama.context_length" not in metadata:
        # Readers require it; 2048 is what llama.cpp's own converter falls back to.
        metadata["llama.context_length"] = 2048
    tokens = tokenizer_metadata(checkpoint)
    # The configuration's own special tokens win over the tokenizer's.
    return tokens | metadata


def _build_head(metadata: Mapping[str, Any], tensors: Stored) -> tuple[bytes, dict[str, int], int]:
    """Return the file's first bytes, every tensor's offset in it, and its length in bytes."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, content = _encode(value)
        parts += [_string(key), struct.pack("<I", kind), content]
    relative, at = {}, 0
    for name, (encoding, shape) in tensors.items():
        relative[name] = at
        parts += [_string(name), struct.pack("<I", len(shape))]
        parts += [struct.pack("<Q", length) for length in reversed(shape)]
        parts.append(struct.pack("<IQ", encoding, at))
        at += _padded(encoded_size(shape, encoding))
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
    if isinstance(value, np.generic):  # of the width that its dtype says
        return _WIDTHS[value.dtype], value.tobytes()
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
