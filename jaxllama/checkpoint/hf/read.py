"""Hugging Face directories: config.json, safetensors (one file, or shards with an index)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.hf.safetensors_file import Slot, read_header, read_tensor
from jaxllama.checkpoint.names import HEAD, canonical_names
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError
from jaxllama.tokenizer import Tokenizer

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Carried along on conversion, and removed from no one's directory.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "generation_config.json",
)

Stored = dict[str, tuple[Path, Slot]]


def is_hf(path: Path) -> bool:
    """Whether a path looks like a Hugging Face directory."""
    return any((path / name).is_file() for name in (SINGLE, INDEX)) or (path / CONFIG).is_file()


def open_hf(path: Path) -> Checkpoint:
    """Open a Hugging Face directory; weights are read only when asked for.

    Raises:
        CheckpointError: a file is missing, damaged or outside the directory, or the index and the
            shards disagree.
        ConfigError: config.json is contradictory or not understood.
    """
    config_file = files.inside(path, CONFIG)
    content = files.read_json(config_file)
    config = LlamaConfig.from_hf(content, source=str(config_file))
    stored = read_stored(path)
    infos = {name: TensorInfo(slot.shape, slot.dtype, at) for name, (at, slot) in stored.items()}
    return directory_checkpoint(
        path, "hf", config, content, infos, lambda name: read_tensor(*stored[name])
    )


def directory_checkpoint(
    path: Path,
    format: str,
    config: LlamaConfig,
    content: dict[str, Any],
    stored: Mapping[str, TensorInfo],
    read_stored: Callable[[str], np.ndarray],
) -> Checkpoint:
    """Return the checkpoint of a directory whose config and companions are as Hugging Face's.

    Args:
        path: the directory.
        format: of its weights.
        config: its config.json, understood.
        content: its config.json as it is.
        stored: its tensors, by the names they are stored under.
        read_stored: reads one of them.
    """
    canonical, notes, problems = canonical_names(stored, config, "hf")
    tensors = {name: stored[at] for name, at in canonical.items()}
    head = tensors.pop(HEAD, None) if config.tie_word_embeddings else None
    return Checkpoint(
        path=path,
        format=format,
        config=config,
        hf_config=content,
        tensors=tensors,
        reader=lambda name: read_stored(canonical[name]),
        config_source=CONFIG,
        stored_head=head,
        notes=notes,
        problems=problems,
        companions=companions(path),
        tokenizer_loader=tokenizer_loader(path),
    )


def read_stored(path: Path) -> Stored:
    """Return every tensor of a directory's safetensors files: its file and its place there."""
    if (path / INDEX).exists() and not (path / SINGLE).exists():
        return _read_sharded(path)
    single = files.inside(path, SINGLE)
    if not single.is_file():
        raise CheckpointError(f"{path}: holds neither {SINGLE} nor {INDEX}")
    return {name: (single, slot) for name, slot in read_header(single).items()}


def _read_sharded(path: Path) -> Stored:
    index = path / INDEX
    weight_map = files.read_json(files.inside(path, INDEX), files.INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(f"{index}: weight_map is not an object of file names")
    stored: Stored = {}
    problems: list[str] = []
    for shard in sorted(set(weight_map.values())):
        try:
            file = files.inside(path, shard)
            slots = read_header(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        listed = {name for name, file_name in weight_map.items() if file_name == shard}
        problems += [
            f"{shard}: lacks {name}, which {INDEX} places there"
            for name in sorted(listed - slots.keys())
        ]
        problems += [
            f"{shard}: holds {name}, which {INDEX} does not place there"
            for name in sorted(slots.keys() - listed)
        ]
        stored |= {name: (file, slot) for name, slot in slots.items() if name in listed}
    if problems:
        rest = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"{path}: " + "; ".join(problems[:20]) + rest)
    return stored


def companions(path: Path) -> dict[str, Callable[[], bytes]]:
    """Return readers of the files to carry along with the weights."""
    found: dict[str, Callable[[], bytes]] = {}
    for name in COMPANIONS:
        if (path / name).exists():
            file = files.inside(path, name)
            found[name] = partial(files.read_bytes, file, files.TOKENIZER_LIMIT)
    return found


def tokenizer_loader(path: Path) -> Callable[[], Tokenizer] | None:
    """Return what reads a directory's tokenizer, None if it has none."""
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return partial(Tokenizer.from_directory, path)
    return None
