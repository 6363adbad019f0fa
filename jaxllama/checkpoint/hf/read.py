"""Hugging Face directories: config.json, safetensors (one file, or shards with an index)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint, Index, TensorInfo
from jaxllama.checkpoint.hf.safetensors_file import read_part, read_tensor
from jaxllama.checkpoint.hf.weights import ADAPTER, INDEX, SINGLE, find_weights
from jaxllama.checkpoint.names import HEAD
from jaxllama.checkpoint.stored_names import resolve
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.generation import read_generation
from jaxllama.dtypes import FLOATS
from jaxllama.errors import CheckpointError
from jaxllama.files import limits
from jaxllama.tokenizer import Tokenizer

CONFIG = "config.json"
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

GENERATION = "generation_config.json"


def is_hf(path: Path) -> bool:
    """Whether a path looks like a Hugging Face directory."""
    return any((path / name).exists() for name in (CONFIG, SINGLE, INDEX))


def open_hf(path: Path) -> Checkpoint:
    """Open a Hugging Face directory; weights are read only when asked for.

    Raises:
        CheckpointError: a file is missing, damaged or outside the directory, or the index and the
            shards disagree.
        ConfigError: config.json is contradictory or not understood.
    """
    config_file = files.inside(path, CONFIG)
    if not config_file.exists() and (path / ADAPTER).exists():
        find_weights(path)  # says that it is an adapter
    content = files.read_json(config_file)
    notes: list[str] = []
    config = LlamaConfig.from_hf(content, source=str(config_file), notes=notes)
    stored, left = find_weights(path)
    infos = {name: TensorInfo(slot.shape, slot.dtype, at) for name, (at, slot) in stored.items()}
    found = directory_checkpoint(
        path,
        "hf",
        config,
        content,
        infos,
        lambda name: read_tensor(*stored[name]),
        lambda name, index: read_part(*stored[name], index),
    )
    return found.noted(*(f"{CONFIG}: {note}" for note in notes), *left)


def _dtype_left(content: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return a note where config.json names a dtype that no weight has."""
    stated = {content.get(name) for name in ("dtype", "torch_dtype")}
    names = {one.removeprefix("torch.") for one in stated if isinstance(one, str)} & FLOATS.keys()
    own = sorted({info.dtype.name for info in tensors.values()})
    if len(names) != 1 or not own or names & {*own}:
        return []
    return [f"{CONFIG}: dtype {names.pop()} is left, the weights are {' and '.join(own)}"]


def directory_checkpoint(
    path: Path,
    format: str,
    config: LlamaConfig,
    content: dict[str, Any],
    stored: Mapping[str, TensorInfo],
    read_stored: Callable[[str], np.ndarray],
    read_stored_part: Callable[[str, Index], np.ndarray],
) -> Checkpoint:
    """Return the checkpoint of a directory whose config and companions are as Hugging Face's.

    Args:
        path: the directory.
        format: of its weights.
        config: its config.json, understood.
        content: its config.json as it is.
        stored: its tensors, by the names they are stored under.
        read_stored: reads one of them.
        read_stored_part: reads a part of one.
    """
    found = resolve(stored, config, "hf", str(path))
    tensors = {name: stored[at] for name, at in found.stored.items()}
    notes, problems = generation_settings(path, config)
    head = tensors.pop(HEAD, None) if config.tie_word_embeddings else None
    return Checkpoint(
        path=path,
        format=format,
        config=config,
        hf_config=content,
        tensors=tensors,
        reader=lambda name: read_stored(found.stored[name]),
        part_reader=lambda name, index: read_stored_part(found.stored[name], index),
        config_source=CONFIG,
        stored_head=head,
        notes=(*found.notes, *_dtype_left(content, tensors), *notes),
        problems=(*found.problems, *problems),
        companions=companions(path),
        tokenizer_loader=tokenizer_loader(path),
    )


def generation_settings(path: Path, config: LlamaConfig) -> tuple[list[str], list[str]]:
    """Return notes and problems of a directory's generation_config.json, if it has one."""
    if not (path / GENERATION).exists():
        return [], []
    content = files.read_json(files.inside(path, GENERATION))
    stated = {
        "bos_token_id": (config.bos_token_id,),
        "eos_token_id": config.eos_token_ids,
        "pad_token_id": (config.pad_token_id,),
    }
    # Of these the tokenizer's own word is taken, and its notes say what is left.
    stated = {name: ids for name, ids in stated.items() if name not in _named_by_tokenizer(path)}
    notes, problems = read_generation(content, config.vocab_size, stated)
    return [f"{GENERATION}: {n}" for n in notes], [f"{GENERATION}: {p}" for p in problems]


def _named_by_tokenizer(path: Path) -> set[str]:
    """Return the fields of ids for which the files beside tokenizer.json name a token."""
    named: set[str] = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        with suppress(CheckpointError):  # damaged, or not there: the tokenizer says it
            content = files.read_json(files.inside(path, name), limits.TOKENIZER_BYTES)
            roles = ("bos_token", "pad_token")
            named |= {f"{role}_id" for role in roles if content.get(role) is not None}
    return named if (path / "tokenizer.json").is_file() else set()


def companions(path: Path) -> dict[str, Callable[[], bytes]]:
    """Return readers of the files to carry along with the weights."""
    found: dict[str, Callable[[], bytes]] = {}
    for name in COMPANIONS:
        if (path / name).exists():
            file = files.inside(path, name)
            files.size(file)  # a directory in its place is said when the checkpoint is opened
            found[name] = partial(files.read_bytes, file, limits.TOKENIZER_BYTES)
    return found


def tokenizer_loader(path: Path) -> Callable[[], Tokenizer] | None:
    """Return what reads a directory's tokenizer, None if it has none."""
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return partial(Tokenizer.from_directory, path)
    return None
