"""What two checkpoints say beside their weights: configuration, tokenizer, generation settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from reprlib import repr  # of bounded length
from typing import Any

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.errors import JaxLlamaError
from jaxllama.tokenizer import Tokenizer

# What formats may have no place for, and no number depends on.
_INFORMATIVE = ("max_position_embeddings", "bos_token_id", "eos_token_ids", "pad_token_id")
_GENERATION = "generation_config.json"
# Who wrote a file, not what it says.
_WRITERS = {"_from_model_config", "_name_or_path", "_commit_hash", "transformers_version"}
_DTYPES = {"dtype", "torch_dtype"}  # the tensors tell
_TEXTS = (
    "The quick brown fox, 12345 times: don't!",
    "  two  spaces\n\n\ttabs\r\n",
    "naïve café 東京 🦙 مرحبا",
)


def compare_settings(a: Checkpoint, b: Checkpoint) -> tuple[list[str], list[str]]:
    """Return a line for each setting that differs, and notes on those that one format lacks."""
    differences: list[str] = []
    notes: list[str] = []
    for part in (_configs, _tokenizers, _generations):
        for line, counts in part(a, b):
            (differences if counts else notes).append(line)
    return differences, notes


def _said(name: str, first: Any, second: Any) -> str:
    return f"{name}: {first!r} in the first, {second!r} in the second"


def _configs(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, bool]]:
    first, second = vars(a.config), vars(b.config)
    for name in first:
        if first[name] != second[name]:
            both = first[name] not in (None, ()) and second[name] not in (None, ())
            counts = name not in _INFORMATIVE or both or a.format == b.format
            yield _said(name, first[name], second[name]), counts
    if a.format == b.format:
        for name, one, other in _unlike(a.hf_config, b.hf_config, _WRITERS | _DTYPES):
            if name not in a.config.to_hf() and name != "rope_parameters":
                yield f"config.json: {_said(name, one, other)}; no number depends on it", False


def _tokenizers(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, bool]]:
    if (a.tokenizer_loader is None) != (b.tokenizer_loader is None):
        has = "first" if a.tokenizer_loader else "second"
        yield f"tokenizer: in the {has} alone", a.format == b.format != "memory"
        return
    if a.tokenizer_loader is None:
        return
    read: list[Tokenizer] = []
    for which, checkpoint in (("first", a), ("second", b)):
        try:
            read.append(checkpoint.tokenizer())
        except JaxLlamaError as error:
            yield f"tokenizer: cannot be read in the {which}: {error}", True
            continue
        for problem in read[-1].problems:
            yield f"tokenizer: in the {which}: {problem}", True
    if len(read) == 2:
        for name, one, other in _tokenizer_differences(*read):
            yield f"tokenizer: {name}: {one} in the first, {other} in the second", True


def _tokenizer_differences(a: Tokenizer, b: Tokenizer) -> Iterator[tuple[str, str, str]]:
    for name in ("bos_id", "eos_ids", "pad_id", "adds_bos", "special_tokens", "chat_template"):
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            yield name, repr(one), repr(other)
    for text in _TEXTS:
        one, other = a.encode(text), b.encode(text)
        if one != other:
            yield f"ids of {text[:20]!r}", repr(one), repr(other)
    # Above the smaller vocabulary are the fillers that a format needs for an embedding's rows.
    for i in range(min(a.vocab_size, b.vocab_size)):
        if (one := a.decode([i])) != (other := b.decode([i])):
            yield f"token {i}", repr(one), repr(other)
            return


def _generations(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, bool]]:
    """Compare the files where both formats carry any; GGUF has the ids alone, in its keys."""
    first, second = _generation(a), _generation(b)
    carried = "gguf" not in (a.format, b.format) and "memory" not in (a.format, b.format)
    for name, one, other in _unlike(first or {}, second or {}, _WRITERS):
        counts = carried and first is not None and second is not None
        yield f"{_GENERATION}: {_said(name, one, other)}", counts or a.format == b.format


def _generation(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    if _GENERATION not in checkpoint.companions:
        return None
    found = json.loads(checkpoint.companions[_GENERATION]())
    return found if isinstance(found, dict) else None


def _unlike(
    first: Mapping[str, Any], second: Mapping[str, Any], but: set[str]
) -> Iterator[tuple[str, Any, Any]]:
    for name in [*first, *(n for n in second if n not in first)]:
        if name not in but and first.get(name) != second.get(name):
            yield name, first.get(name), second.get(name)
