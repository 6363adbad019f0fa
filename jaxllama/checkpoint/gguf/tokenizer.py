"""The tokenizer in a GGUF file's metadata, as the files that `tokenizers` and transformers read.

Source: `convert_hf_to_gguf.py` and `src/llama-vocab.cpp` in llama.cpp, which name the
pre-tokenizers and what each implies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.errors import CheckpointError, join_problems
from jaxllama.files import limits
from jaxllama.tokenizer import LLAMA3_SPLIT
from jaxllama.tokenizer import Tokenizer as OurTokenizer
from jaxllama.tokenizer.backend import library_errors

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MERGES = "tokenizer.ggml.merges"
_ADD_BOS, _TEMPLATE = "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"
_CONTEXT = "llama.context_length"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


# Control tokens that Llama 3's vocabularies have and no other: older files say no more.
_LLAMA3_TOKENS = {
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
}
_KNOWN = "'llama-bpe' (Llama 3), 'smollm' and 'gpt-2'"


@dataclass(frozen=True)
class _PreTokenizer:
    """What a name in `tokenizer.ggml.pre` stands for."""

    steps: tuple[pre_tokenizers.PreTokenizer, ...]
    ignore_merges: bool
    add_bos: bool


def _known(name: str) -> _PreTokenizer | None:
    steps: tuple[pre_tokenizers.PreTokenizer, ...]
    if name in ("smollm", "refact", "command-r", "starcoder"):
        steps = (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        )
        return _PreTokenizer(steps, ignore_merges=False, add_bos=False)
    if name in ("llama-bpe", "llama3", "llama-v3", "smaug-bpe"):
        steps = (
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        )
        return _PreTokenizer(steps, ignore_merges=True, add_bos=True)
    if name == "gpt-2":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return _PreTokenizer((byte_level,), ignore_merges=False, add_bos=False)
    return None


def recovered(metadata: Mapping[str, Any]) -> list[str]:
    """Return a note where the pre-tokenizer is not stated and the special tokens tell it."""
    model = metadata.get(MODEL)
    if PRE in metadata or not isinstance(model, str) or model != "gpt2" or not _is_llama3(metadata):
        return []
    return [f"{PRE} is missing: read as 'llama-bpe', whose special tokens the file has"]


def _is_llama3(metadata: Mapping[str, Any]) -> bool:
    pairs = zip(_listed(metadata, TOKENS), _listed(metadata, TYPES), strict=False)
    return {text for text, kind in pairs if kind == _CONTROL} >= _LLAMA3_TOKENS


def _listed(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """Return an array as a list, an empty one where there is none."""
    value = metadata.get(key)
    return (
        value.tolist()
        if isinstance(value, np.ndarray)
        else value
        if isinstance(value, list)
        else []
    )


def _check_kinds(metadata: Mapping[str, Any], source: str) -> None:
    """Refuse values of another type than their key has: `"false"` would be true."""
    kinds: dict[str, tuple[str, type]] = {
        **dict.fromkeys((MODEL, PRE, _TEMPLATE), ("a text", str)),
        **dict.fromkeys((*_ROLES.values(), _CONTEXT), ("an integer", int)),
        **dict.fromkeys((TOKENS, MERGES), ("a list of texts", list)),
        TYPES: ("a list of integers", np.ndarray),
        _ADD_BOS: ("true or false", bool),
    }
    given = {key: metadata[key] for key in kinds if key in metadata}
    for key in (TOKENS, TYPES, MERGES):  # an empty list may be of any type
        if isinstance(given.get(key), np.ndarray) and not given[key].size:
            del given[key]
    problems = [
        f"{key} is {value!r:.60}, expected {kinds[key][0]}"
        for key, value in given.items()
        if type(value) is not kinds[key][1]
    ]
    types = given.get(TYPES)
    if isinstance(types, np.ndarray) and types.dtype.kind not in "iu":
        problems.append(f"{TYPES} has items of {types.dtype}, expected integers")
    if problems:
        raise CheckpointError(join_problems(f"{source}: its tokenizer", problems))


def _pre_tokenizer(metadata: Mapping[str, Any], source: str) -> _PreTokenizer:
    """Return how text is cut. There is no default: another cut gives other tokens."""
    model = metadata.get(MODEL)
    if model != "gpt2":
        of_llama2 = ", which is SentencePiece as of Llama 2," if model == "llama" else ""
        raise CheckpointError(
            f"{source}: tokenizer model {model!r}{of_llama2} is not supported; byte-level BPE is, "
            f"which GGUF calls 'gpt2', cut as {_KNOWN}"
        )
    if PRE not in metadata and not _is_llama3(metadata):
        raise CheckpointError(
            f"{source}: {PRE} is missing, so where text is cut before byte pairs are merged cannot "
            f"be told; convert the model anew, or write the key: {_KNOWN} are known"
        )
    pre = metadata.get(PRE, "llama-bpe")
    kind = _known(pre) if isinstance(pre, str) else None
    if kind is None:
        raise CheckpointError(
            f"{source}: pre-tokenizer {pre!r} of tokenizer model 'gpt2' is not supported, and "
            f"another would give other tokens; {_KNOWN} are. If the model is one of these, write "
            f"its name into {PRE}"
        )
    return kind


def _require(metadata: Mapping[str, Any], source: str) -> None:
    """Refuse a vocabulary in parts that do not fit: what is missing would be taken for nothing."""
    count, types = len(_listed(metadata, TOKENS)), len(_listed(metadata, TYPES))
    problems = []
    if types != count:
        problems.append(
            f"{TYPES} has {types} entries for {count} tokens, so control tokens are lost"
        )
    if MERGES not in metadata:
        problems.append(f"{MERGES} is missing, so every text would fall into bytes")
    if problems:
        problems[-1] += "; convert the model anew"
        raise CheckpointError(join_problems(source, problems))


def tokenizer_files(metadata: Mapping[str, Any], source: str) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json and generation_config.json.

    Args:
        metadata: of the GGUF file.
        source: what to call the file in an error.

    Raises:
        CheckpointError: the tokenizer is of a kind not supported, or its parts do not fit.
    """
    _check_kinds(metadata, source)
    kind = _pre_tokenizer(metadata, source)
    _require(metadata, source)
    tokens = metadata[TOKENS]
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{source}: tokenizer.ggml.tokens is not a list of distinct texts")
    if len(tokens) > limits.TOKENS:
        raise CheckpointError(
            f"{source}: {TOKENS} has {len(tokens)}, at most {limits.TOKENS} are accepted"
        )
    roles = {role: _token(metadata.get(key), key, tokens, source) for role, key in _ROLES.items()}
    add_bos = bool(metadata.get(_ADD_BOS, kind.add_bos))
    with library_errors(f"{source}: its tokenizer cannot be built"):
        tokenizer = _build(metadata, kind, roles["bos_token"] if add_bos else None)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{role: token for role, token in roles.items() if token is not None},
    }
    if context := metadata.get(_CONTEXT):
        config["model_max_length"] = context
    if template := metadata.get(_TEMPLATE):
        config["chat_template"] = template
    generation = {
        f"{role}_id": metadata[key]
        for role, key in _ROLES.items()
        if key in metadata and role != "unk_token"
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False).encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode(),
    }


def _token(number: Any, key: str, tokens: list[str], source: str) -> str | None:
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise CheckpointError(f"{source}: {key} is {number!r}, of {len(tokens)} tokens")
    return tokens[number]


def _build(metadata: Mapping[str, Any], kind: _PreTokenizer, bos: str | None) -> Tokenizer:
    tokens = metadata[TOKENS]
    types = [int(t) for t in metadata[TYPES]]
    added = {i for i, t in enumerate(types) if t in (_CONTROL, _USER_DEFINED)}
    # Special tokens after the last ordinary one are added tokens only, as publishers write them:
    # in the vocabulary of a model that ignores merges they could match plain text.
    ordinary = len(tokens)
    while ordinary - 1 in added:
        ordinary -= 1
    vocabulary = {token: i for i, token in enumerate(tokens[:ordinary])}
    # A merge is two tokens joined by a space; no token of a byte-level vocabulary begins with one.
    merges = [(merge[: (at := merge.index(" ", 1))], merge[at + 1 :]) for merge in metadata[MERGES]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(kind.steps))
    tokenizer.decoder = decoders.ByteLevel()
    for i in sorted(added):
        token = AddedToken(tokens[i], normalized=False, special=types[i] == _CONTROL)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(tokens[i]) != i:
            raise ValueError(f"token {tokens[i]!r} is {i} in the file but got another id")
    if bos is not None:
        number = tokenizer.token_to_id(bos)
        template = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, number)],
        )
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template]
        )
    return tokenizer


def tokenizer_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return GGUF metadata of a checkpoint's tokenizer; empty where it is of no kind GGUF knows.

    Readers take the vocabulary's size from the list of tokens, so that it is filled up to the
    embedding's rows.

    Raises:
        CheckpointError: the tokenizer's files are damaged.
    """
    if "tokenizer.json" not in checkpoint.companions:
        return {}
    content = files.parse_object(checkpoint.companions["tokenizer.json"](), "tokenizer.json")
    tokenizer = checkpoint.tokenizer()
    with library_errors(f"{checkpoint.label}: tokenizer.json cannot be written as GGUF"):
        return _metadata(checkpoint, content, tokenizer)


def _metadata(
    checkpoint: Checkpoint, content: Mapping[str, Any], tokenizer: OurTokenizer
) -> dict[str, Any]:
    model, pre = content.get("model") or {}, _pre_name(content)
    if model.get("type") != "BPE" or pre is None:
        return {}
    rows = checkpoint.config.vocab_size
    added = {t["id"]: t for t in content.get("added_tokens", [])}
    texts = {i: text for text, i in model["vocab"].items()}
    texts |= {i: token["content"] for i, token in added.items()}
    if max(texts, default=0) >= rows:
        raise CheckpointError(
            f"{checkpoint.label}: its tokenizer has token id {max(texts)}, the embedding {rows} "
            "rows; resize one of them"
        )
    kinds = {i: _CONTROL if token.get("special") else _USER_DEFINED for i, token in added.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    metadata: dict[str, Any] = {
        MODEL: "gpt2",
        PRE: pre,
        TOKENS: [texts.get(i, f"[PAD{i}]") for i in range(rows)],
        TYPES: [kinds.get(i, _NORMAL if i in texts else _UNUSED) for i in range(rows)],
        MERGES: merges,
        _ADD_BOS: tokenizer.adds_bos,
    }
    roles = {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id}
    roles["eos"] = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    metadata |= {f"tokenizer.ggml.{r}_token_id": i for r, i in roles.items() if i is not None}
    if tokenizer.chat_template:
        metadata[_TEMPLATE] = tokenizer.chat_template
    return metadata


def _pre_name(content: Mapping[str, Any]) -> str | None:
    """Return GGUF's name of a tokenizer.json's pre-tokenizer, None if it has none."""
    pre = content.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = [step.get("type") for step in steps]
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0].get("pattern") == {"Regex": LLAMA3_SPLIT}:
        return "llama-bpe"
    return "gpt-2" if kinds == ["ByteLevel"] else None
