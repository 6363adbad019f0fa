"""What two checkpoints say beside their weights: configuration, tokenizer, generation settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr  # of bounded length
from typing import Any

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.errors import CheckpointError, JaxLlamaError
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
    for part in (_configs, _tokenizers, _generations, _files):
        for line, counts in part(a, b):
            (differences if counts else notes).append(line)
    return differences, notes


def _by_side(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the notes on either, once where they are the same."""
    said = [f"in {'both' if note in second else 'the first'}: {note}" for note in first]
    return said + [f"in the second: {note}" for note in second if note not in first]


def _said(name: str, first: Any, second: Any) -> str:
    """Return a line on two values; on their first parts that differ, where those would be lost."""
    while isinstance(first, Mapping) or repr(first) == repr(second):
        if (part := _first_unlike(first, second)) is None:
            break
        name, first, second = name + part[0], part[1], part[2]
    return f"{name}: {repr(first)} in the first, {repr(second)} in the second"


def _first_unlike(first: Any, second: Any) -> tuple[str, Any, Any] | None:
    """Return where two values of several parts differ first, and those parts; None if of one."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in (*first, *second):
            if first.get(key) != second.get(key):
                return f"[{key!r}]", first.get(key), second.get(key)
    if isinstance(first, list | tuple | str) and isinstance(second, list | tuple | str):
        least = min(len(first), len(second))
        at = next((i for i in range(least) if first[i] != second[i]), least)
        if isinstance(first, str):
            return f" from character {at}", first[at:], second[at:]
        one, other = (next(iter(values[at : at + 1]), None) for values in (first, second))
        return f"[{at}]", one, other
    return None


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
    odd: dict[str, Sequence[str]] = {"first": (), "second": ()}
    for which, checkpoint in (("first", a), ("second", b)):
        try:
            read.append(checkpoint.tokenizer())
        except JaxLlamaError as error:
            yield f"tokenizer: cannot be read in the {which}: {error}", True
            continue
        odd[which] = read[-1].notes
        for problem in read[-1].problems:
            yield f"tokenizer: in the {which}: {problem}", True
    yield from ((f"tokenizer: {note}", False) for note in _by_side(*odd.values()))
    if len(read) == 2:
        for name, one, other in _tokenizer_differences(*read):
            yield f"tokenizer: {_said(name, one, other)}", True


def _tokenizer_differences(a: Tokenizer, b: Tokenizer) -> Iterator[tuple[str, Any, Any]]:
    for name in ("bos_id", "eos_ids", "pad_id", "adds_bos", "special_tokens", "chat_template"):
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            yield name, one, other
    for text in _TEXTS:
        one, other = a.encode(text), b.encode(text)
        if one != other:
            yield f"ids of {text[:20]!r}", one, other
    # Above the smaller vocabulary are the fillers that a format needs for an embedding's rows.
    for i in range(min(a.vocab_size, b.vocab_size)):
        if a.decode([i]) != b.decode([i]):
            yield f"token {i}", a.decode([i]), b.decode([i])
            return


def _generations(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, bool]]:
    """Compare the files where both formats carry any; GGUF has the ids alone, in its keys."""
    first, second = _generation(a), _generation(b)
    carried = "gguf" not in (a.format, b.format) and "memory" not in (a.format, b.format)
    for name, one, other in _unlike(first or {}, second or {}, _WRITERS):
        counts = carried and first is not None and second is not None
        yield f"{_GENERATION}: {_said(name, one, other)}", counts or a.format == b.format


def _files(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, bool]]:
    """Compare the files beside the weights as they are, where both have them as files.

    Merges decide how any text is cut, and the few texts above may need none of those that differ.
    What else differs may be a writer's way to say the same.
    """
    if {"gguf", "memory"} & {a.format, b.format}:
        return
    for name in [n for n in a.companions if n in b.companions and n != _GENERATION]:
        first, second = (_content(checkpoint, name) for checkpoint in (a, b))
        if first == second:
            continue
        counts = name in _COUNTED
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            models = [one.get("model") for one in (first, second)]
            merges = [one.get("merges") for one in models if isinstance(one, Mapping)]
            counts = len(merges) == 2 and list(map(_pair, merges[0] or ())) != list(
                map(_pair, merges[1] or ())
            )
        yield _said(name, first, second), counts


# No two contents of these say the same.
_COUNTED = ("tokenizer.model",)


def _pair(merge: Any) -> Any:
    """Return a merge in one of the two ways in which it is written."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _content(checkpoint: Checkpoint, name: str) -> Any:
    """Return a file's JSON, or else its bytes."""
    raw = checkpoint.companions[name]()
    try:
        return files.parse_object(raw, name)
    except CheckpointError:
        return raw


def _generation(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    if _GENERATION not in checkpoint.companions:
        return None
    return files.parse_object(checkpoint.companions[_GENERATION](), _GENERATION)


def _unlike(
    first: Mapping[str, Any], second: Mapping[str, Any], but: set[str]
) -> Iterator[tuple[str, Any, Any]]:
    for name in [*first, *(n for n in second if n not in first)]:
        if name not in but and first.get(name) != second.get(name):
            yield name, first.get(name), second.get(name)
