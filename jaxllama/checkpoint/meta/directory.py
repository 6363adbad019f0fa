"""Meta's format: params.json and consolidated.NN.pth, one file for each model-parallel rank."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.hf.read import companions, generation_settings, tokenizer_loader
from jaxllama.checkpoint.hf.weights import left_beside
from jaxllama.checkpoint.hf.write import companion_files
from jaxllama.checkpoint.layout import Layout, Piece
from jaxllama.checkpoint.manifest import MANIFEST, read_manifest
from jaxllama.checkpoint.meta.pth_file import Shard, plan_file
from jaxllama.checkpoint.names import (
    EMBEDDING,
    HEAD,
    Entry,
    entry_of,
    half_split,
    heads_of,
    interleave,
    sizes,
    to_dialect,
)
from jaxllama.checkpoint.stored_names import resolve
from jaxllama.checkpoint.wrappers import unwrap
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.hf import carried_fields
from jaxllama.errors import CheckpointError, InputError, join_problems
from jaxllama.tokenizer import write_model_file

PARAMS = "params.json"
_SHARD = re.compile(r"consolidated\.(\d\d)\.pth")


def is_meta(path: Path) -> bool:
    """Whether a path looks like a directory of Meta's."""
    return (path / PARAMS).is_file() or any(path.glob("consolidated.*.pth"))


def open_meta(path: Path) -> Checkpoint:
    """Open a directory of Meta's; weights are joined and put in canonical order when asked for.

    Raises:
        CheckpointError: a file is missing, damaged, or a pickle of more than tensors; or the
            shards do not fit together.
        ConfigError: params.json is contradictory or not understood.
    """
    params = files.read_json(files.inside(path, PARAMS))
    shards = [Shard(file) for file in _shard_files(path)]
    if misfits := _shard_problems(shards):
        raise CheckpointError(join_problems(str(path), misfits))
    plain, config_notes = unwrap(shards[0].shapes, "meta", str(path))
    if config_notes and len(set(plain.values())) == len(plain):
        for shard in shards:
            shard.rename(plain)
    config, hf_config = _config(path, params, shards, config_notes)
    stored = {
        name: TensorInfo(shape, dtype, shards[0].file)
        for name, (shape, dtype) in shards[0].shapes.items()
    }
    found = resolve(stored, config, "meta", str(path))
    names, notes = found.stored, (*config_notes, *found.notes)
    tensors = {}
    for name, at in names.items():
        shape, dtype = shards[0].shapes[at]
        tensors[name] = TensorInfo(
            _joined_shape(name, shape, config, len(shards)), dtype, shards[0].file
        )
    head = tensors.pop(HEAD, None) if config.tie_word_embeddings else None

    def read(name: str) -> np.ndarray:
        return _read(shards, names[name], name, tensors.get(name, head), config)

    if head is not None:
        notes = tuple(n for n in notes if not n.startswith(HEAD))
        notes += ("output.weight equals tok_embeddings.weight: read as tied",)
    said, problems = generation_settings(path, config)
    said += left_beside(path, {shard.file.name for shard in shards})
    return Checkpoint(
        path=path,
        format="meta",
        config=config,
        hf_config=hf_config,
        tensors=tensors,
        reader=read,
        config_source=PARAMS,
        stored_head=head,
        notes=(
            *notes,
            *([f"{len(shards)} model-parallel shards"] if len(shards) > 1 else []),
            *said,
        ),
        problems=(*found.problems, *problems),
        companions=companions(path),
        tokenizer_loader=tokenizer_loader(path),
    )


def _shard_files(path: Path) -> list[Path]:
    found = sorted(p.name for p in path.glob("consolidated.*.pth"))
    numbers = [int(m.group(1)) for name in found if (m := _SHARD.fullmatch(name))]
    if not found or numbers != list(range(len(found))):
        others = [p.name for p in path.glob("*.pth")] if not found else []
        there = f", but {others[0]}: rename it if it is the only one" if len(others) == 1 else ""
        raise CheckpointError(
            f"{path}: holds {', '.join(found) or 'no consolidated.NN.pth'}, expected "
            f"consolidated.00.pth and on without gaps{there}"
        )
    return [files.inside(path, name) for name in found]


def _shard_problems(shards: list[Shard]) -> list[str]:
    problems, first = [], shards[0]
    for shard in shards[1:]:
        for name in sorted(first.shapes.keys() ^ shard.shapes.keys()):
            has, lacks = (first, shard) if name in first.shapes else (shard, first)
            problems.append(f"{name}: in {has.file.name}, not in {lacks.file.name}")
        for name in first.shapes.keys() & shard.shapes.keys():
            if first.shapes[name] != shard.shapes[name]:
                problems.append(
                    f"{name}: {first.shapes[name]} in {first.file.name}, {shard.shapes[name]} in "
                    f"{shard.file.name}"
                )
    return problems


def _config(
    path: Path, params: dict[str, Any], shards: list[Shard], notes: list[str]
) -> tuple[LlamaConfig, dict[str, Any]]:
    """Read params.json, and what it leaves out from the weights and the manifest.

    Returns:
        The numbers, and the same as a config.json with the fields that were carried along.
    """
    table = [shard.shapes.get("tok_embeddings.weight") for shard in shards]
    rows = None
    if table[0] is not None and len(table[0][0]) == 2:
        shape, dim = table[0][0], params.get("dim")
        rows = shape[0] * (1 if shape[1] != dim and shape[1] * len(shards) == dim else len(shards))
    config = LlamaConfig.from_meta(
        params, tie_word_embeddings=_is_tied(shards), vocab_size=rows, source=str(path / PARAMS)
    )
    if params.get("vocab_size") in (None, -1):
        stated = "-1" if params.get("vocab_size") == -1 else "is not stated"
        notes.append(
            f"{PARAMS}: vocab_size {stated}: read as {config.vocab_size}, the embedding's rows"
        )
    if not os.path.lexists(path / MANIFEST):
        return config, config.to_hf()
    beside = read_manifest(path).hf_config
    try:
        original = LlamaConfig.from_hf(beside, notes=notes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Special tokens and the stated context, which the format has no place for.
    filled = config.replace(
        max_position_embeddings=original.max_position_embeddings,
        bos_token_id=original.bos_token_id,
        eos_token_ids=original.eos_token_ids,
        pad_token_id=original.pad_token_id,
    )
    if filled != original:
        raise CheckpointError(
            f"{path}: {PARAMS} and {MANIFEST} describe different models; remove the manifest if "
            "the parameters were changed on purpose"
        )
    return filled, {**filled.to_hf(), **carried_fields(beside)}


def _is_tied(shards: list[Shard]) -> bool:
    """Whether the output is absent or repeats the embedding: the format has no field for it."""
    names = ("tok_embeddings.weight", "output.weight")
    if "output.weight" not in shards[0].shapes:
        return True
    if any(name not in shards[0].shapes for name in names):
        return False
    for shard in shards:
        if shard.shapes[names[0]] != shard.shapes[names[1]]:
            return False
        first, second = (
            shard.read(name, compared=False).reshape(-1).view(np.uint8) for name in names
        )
        step = 1 << 22  # models that are not tied differ in the first block
        for i in range(0, first.size, step):
            if not np.array_equal(first[i : i + step], second[i : i + step]):
                return False
    return True


def _split_axis(entry: Entry, shape: tuple[int, ...], config: LlamaConfig) -> int | None:
    # Llama 2 split its embedding by columns, Llama 3 by rows.
    if entry.hf == EMBEDDING and len(shape) == 2 and shape[0] == config.vocab_size:
        return 1
    return entry.shard_axis


def _replicas(entry: Entry, rows: int, config: LlamaConfig, degree: int) -> int:
    """Return how many ranks hold the same kv heads: more than one above n_kv_heads ranks."""
    heads = config.num_key_value_heads
    if entry.shape[0] == "K*H" and degree > heads and rows == config.head_dim:
        return degree // heads
    return 1


def _joined_shape(
    name: str, shape: tuple[int, ...], config: LlamaConfig, degree: int
) -> tuple[int, ...]:
    entry = entry_of(name)
    axis = _split_axis(entry, shape, config)
    if degree == 1 or axis is None or len(shape) <= axis:
        return shape
    length = shape[axis] * degree // _replicas(entry, shape[0], config, degree)
    return (*shape[:axis], length, *shape[axis + 1 :])


def _read(
    shards: list[Shard], at: str, name: str, info: TensorInfo | None, config: LlamaConfig
) -> np.ndarray:
    assert info is not None
    entry, degree = entry_of(name), len(shards)
    local = shards[0].shapes[at][0]
    axis = _split_axis(entry, local, config)
    result = np.empty(info.shape, info.dtype)
    if axis is None or degree == 1:
        result[...] = shards[0].read(at)
        _same_everywhere(shards[0], result, shards[1:], at)
    else:
        copies = _replicas(entry, local[0], config, degree)
        parts = np.split(result, degree // copies, axis)
        for i, part in enumerate(parts):
            first, *others = shards[i * copies : (i + 1) * copies]
            part[...] = first.read(at)
            _same_everywhere(first, part, others, at)
    if entry.rotary is None:
        return result
    heads = heads_of(entry, config)
    if len(result) % heads or (len(result) // heads) % 2:
        raise CheckpointError(f"{name}: {len(result)} rows are not {heads} heads of an even size")
    return half_split(result, heads)


def _same_everywhere(first: Shard, values: np.ndarray, others: list[Shard], name: str) -> None:
    for shard in others:
        copy = shard.read(name)
        if not np.array_equal(np.ascontiguousarray(values).view(np.uint8), copy.view(np.uint8)):
            raise CheckpointError(
                f"{shard.file}: {name} differs from {first.file.name}, but the format replicates it"
            )


def lay_out_meta(
    checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype], *, shards: int | None = None
) -> Layout:
    """Plan a directory of Meta's.

    Args:
        checkpoint: what is to be written.
        dtypes: of every tensor once written, by canonical name.
        shards: model-parallel degree; 1 if not given.

    Raises:
        ConfigError: the format cannot express the configuration.
        InputError: the degree does not divide the heads, the MLP or the vocabulary.
    """
    config, degree = checkpoint.config, shards or 1
    _check_degree(config, degree)
    layout = Layout()
    layout.small[PARAMS] = json.dumps(config.to_meta(), indent=2).encode()
    layout.small |= companion_files(checkpoint)
    _add_tokenizer_model(layout, config.vocab_size)
    stored = _stored_names(dtypes, config)
    shapes = {at: _local_shape(name, config, degree) for at, name in stored.items()}
    planned = plan_file({at: (shapes[at], dtypes[n]) for at, n in stored.items()})
    for rank in range(degree):
        file = f"consolidated.{rank:02}.pth"
        layout.add_file(file, planned.frame, planned.length)
        for at, name in stored.items():
            cut = partial(_part, name=name, config=config, degree=degree, rank=rank)
            piece = Piece(file, planned.offsets[at], cut, planned.checksums[at])
            layout.pieces.setdefault(name, []).append(piece)
    return layout


def _add_tokenizer_model(layout: Layout, rows: int) -> None:
    """Make Meta's tokenizer of Hugging Face's, which Meta's own programs do not read."""
    if "tokenizer.json" not in layout.small or "tokenizer.model" in layout.small:
        return
    try:
        layout.small["tokenizer.model"] = write_model_file(layout.small["tokenizer.json"], rows)
    except CheckpointError as error:
        layout.notes.append(
            f"tokenizer.model, which Meta's own programs need, is not written, for tokenizer.json "
            f"is of another kind: {error}"
        )


def _check_degree(config: LlamaConfig, degree: int) -> None:
    kv_heads = config.num_key_value_heads
    divided = {
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    problems = [f"{name} {size} by {degree}" for name, size in divided.items() if size % degree]
    if kv_heads % degree and degree % kv_heads:
        problems.append(f"num_key_value_heads {kv_heads} by {degree}, nor the reverse")
    if problems:
        title = f"{degree} model-parallel shards cannot divide"
        raise InputError(join_problems(title, problems))


def _stored_names(dtypes: Mapping[str, np.dtype], config: LlamaConfig) -> dict[str, str]:
    """Return canonical names by Meta's; a tied embedding is stored twice, as the format has it."""
    stored = {to_dialect(name, "meta"): name for name in dtypes}
    if config.tie_word_embeddings:
        stored[to_dialect(HEAD, "meta")] = EMBEDDING
    return stored


def _local_heads(entry: Entry, config: LlamaConfig, degree: int) -> int:
    return max(1, heads_of(entry, config) // degree)


def _local_shape(name: str, config: LlamaConfig, degree: int) -> tuple[int, ...]:
    entry, lengths = entry_of(name), sizes(config)
    shape = [lengths[symbol] for symbol in entry.shape]
    if entry.shape[0] == "K*H":
        shape[0] = max(shape[0] // degree, config.head_dim)
    elif entry.shard_axis is not None:
        shape[entry.shard_axis] //= degree
    return tuple(shape)


def _part(
    values: np.ndarray, *, name: str, config: LlamaConfig, degree: int, rank: int
) -> np.ndarray:
    """Return one rank's part of a canonical tensor, rotary rows interleaved."""
    entry, axis = entry_of(name), entry_of(name).shard_axis
    if axis is not None:
        length = _local_shape(name, config, degree)[axis]
        # Above n_kv_heads ranks, several in a row hold the same kv head.
        index = rank * (values.shape[axis] // length) // degree
        start = index * length
        values = values[start : start + length] if axis == 0 else values[:, start : start + length]
    if entry.rotary is not None:
        values = interleave(values, _local_heads(entry, config, degree))
    return values
