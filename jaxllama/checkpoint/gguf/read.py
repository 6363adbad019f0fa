"""GGUF, the format of llama.cpp: one file of metadata, tokenizer and (quantised) tensors."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.gguf.file import MAGIC, PLAIN, GGUFFile, GGUFTensor
from jaxllama.checkpoint.gguf.parts import read_parts
from jaxllama.checkpoint.gguf.tokenizer import recovered, tokenizer_files
from jaxllama.checkpoint.names import HEAD, canonical_names, entry_of, half_split, heads_of
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.fields import token_id
from jaxllama.config_formats.gguf import tokenizer_problems
from jaxllama.config_formats.hf import with_carried
from jaxllama.dtypes import FLOATS
from jaxllama.errors import CheckpointError, join_problems
from jaxllama.files import limits, parse_object
from jaxllama.tokenizer import Tokenizer

ROPE_FREQS = "rope_freqs.weight"
# Key of our own: tensors of another dtype than they had before, as `name=bfloat16`. llama.cpp
# takes norms in float32 only; this makes the widening of a narrower norm reversible.
WIDENED = "jaxllama.widened"
# Likewise: what config.json says besides the numbers, as JSON.
CARRIED = "jaxllama.config_json"


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes or else its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC or path.suffix == ".gguf"


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file; weights are read, dequantised and put in canonical order when asked for.

    Args:
        path: the file, or any part of a model that is split.

    Raises:
        CheckpointError: a file is truncated or damaged, or parts do not fit together.
        ConfigError: its metadata is contradictory or not of a Llama model.
    """
    file = read_parts(path)
    stored = dict(file.tensors)
    freqs = stored.pop(ROPE_FREQS, None)
    if freqs is not None and math.prod(freqs.shape) > limits.GGUF_ROPE_FACTORS:
        raise CheckpointError(
            f"{path}: {ROPE_FREQS} has shape {freqs.shape}, at most "
            f"{limits.GGUF_ROPE_FACTORS} elements are accepted"
        )
    rope_freqs = None if freqs is None else file.read(ROPE_FREQS)
    embedding = stored.get("token_embd.weight")
    said: list[str] = []
    config = LlamaConfig.from_gguf(
        {key: value for key, value in file.metadata.items() if key not in (WIDENED, CARRIED)},
        tie_word_embeddings="output.weight" not in stored,
        vocab_size=embedding.shape[0] if embedding and embedding.shape else None,
        rope_freqs=rope_freqs,
        source=str(path),
        notes=said,
    )
    canonical, notes, problems = canonical_names({n: n for n in stored}, config, "gguf")
    narrow = _narrow(file, set(stored))
    tensors = {
        name: TensorInfo(
            stored[at].shape,
            narrow.get(at, _dtype(stored[at])),
            stored[at].path,
            stored[at].type.name,
        )
        for name, at in canonical.items()
    }

    def read(name: str) -> np.ndarray:
        return _read(file, name, canonical[name], config, narrow)

    return Checkpoint(
        path=path,
        format="gguf",
        config=config,
        hf_config=_hf_config(file, config),
        tensors=tensors,
        reader=read,
        config_source="its metadata",
        notes=(*said, *notes, *recovered(file.metadata)),
        problems=problems,
        head_digests=file.head_digests,
        **_tokenizer(file, config),
    )


def _hf_config(file: GGUFFile, config: LlamaConfig) -> dict[str, Any]:
    source = f"{file.path}: {CARRIED}"
    text = file.metadata.get(CARRIED, "{}")
    if not isinstance(text, str):
        raise CheckpointError(f"{source} is no text")
    return with_carried(config, parse_object(text.encode(), source), source)


def _dtype(tensor: GGUFTensor) -> np.dtype:
    return PLAIN.get(tensor.type, np.dtype(np.float32))


def _narrow(file: GGUFFile, names: set[str]) -> dict[str, np.dtype]:
    """Return the dtypes that tensors had before they were widened for llama.cpp."""
    narrow = {}
    listed = file.metadata.get(WIDENED, [])
    if not isinstance(listed, list):
        raise CheckpointError(f"{file.path}: {WIDENED} is {listed!r:.60}, expected a list of texts")
    for item in listed:
        name, _, dtype = str(item).rpartition("=")
        if name not in names or dtype not in FLOATS:
            raise CheckpointError(f"{file.path}: {WIDENED} names {item!r}, which it does not hold")
        narrow[name] = FLOATS[dtype]
    return narrow


def _read(
    file: GGUFFile, name: str, at: str, config: LlamaConfig, narrow: dict[str, np.dtype]
) -> np.ndarray:
    values = file.read(at)
    entry = entry_of(name)
    if entry.rotary is not None:
        heads = heads_of(entry, config)
        if len(values) % heads or (len(values) // heads) % 2:
            raise CheckpointError(
                f"{file.path}: {name}: {len(values)} rows are not {heads} heads of an even size"
            )
        values = half_split(values, heads)
    if at in narrow:
        narrowed = cast(values, narrow[at])
        if not np.array_equal(narrowed.astype(values.dtype), values, equal_nan=True):
            raise CheckpointError(
                f"{file.path}: {name}: {WIDENED} says it was {narrow[at]}, but its values do not "
                "fit that dtype; the file was changed after it was written"
            )
        return narrowed
    return values


def _tokenizer(file: GGUFFile, config: LlamaConfig) -> dict[str, Any]:
    if "tokenizer.ggml.tokens" not in file.metadata:
        return {}

    ids = [key for key in file.metadata if key.endswith("_token_id")]
    absent = {key for key in ids if token_id(key, file.metadata[key], []) is None}
    known = {key: value for key, value in file.metadata.items() if key not in absent}

    @cache
    def made() -> dict[str, bytes]:
        if problems := tokenizer_problems(known):
            raise CheckpointError(join_problems(f"{file.path}: its tokenizer", problems))
        return tokenizer_files(known, str(file.path))

    def load() -> Tokenizer:
        return Tokenizer.from_files(made(), source=str(file.path), config=config)

    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return {
        "companions": {name: lambda name=name: made()[name] for name in names},
        "tokenizer_loader": load,
    }


__all__ = ["CARRIED", "HEAD", "ROPE_FREQS", "WIDENED", "is_gguf", "open_gguf"]
