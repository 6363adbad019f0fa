"""Tokenizer files of a few hundred bytes: every byte a token, and special tokens beside them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllama.tokenizer import byte_tokenizer_json

BOS, END, PAD, TURN, HEAD, TAIL = "<s>", "</s>", "<pad>", "<|turn|>", "<|head|>", "<|tail|>"
SPECIALS = (BOS, END, PAD, TURN, HEAD, TAIL)
FIRST = 256  # the id of the first special token
_USUAL = byte_tokenizer_json(SPECIALS)
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|tail|>' + m['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|tail|>{% endif %}"
)


def tokenizer_json(
    specials: Sequence[str] = SPECIALS,
    *,
    plain: Sequence[str] = (),
    bos: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Return the content of a tokenizer.json.

    Args:
        specials: texts of added tokens, with ids from 256; the first begins a text.
        plain: those of them that are no special tokens.
        bos: whether one is put first.
        changes: to fields of the file.
    """
    content = json.loads(_USUAL if specials == SPECIALS else byte_tokenizer_json(specials))
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in plain
    if bos:
        first, text = {"id": specials[0], "type_id": 0}, {"id": "A", "type_id": 0}
        sequence = [{"SpecialToken": first}, {"Sequence": text}]
        known = {specials[0]: {"id": specials[0], "ids": [FIRST], "tokens": [specials[0]]}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": known,
        }
    return content | changes


def tokenizer_config(**changes: Any) -> dict[str, Any]:
    """Return the content of a tokenizer_config.json; None removes a field."""
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": TURN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def write_tokenizer(directory: Path, **files: Any) -> Path:
    """Write files of a tokenizer; `tokenizer_json=...` is the file of that name, JSON or text."""
    directory.mkdir(parents=True, exist_ok=True)
    contents: Mapping[str, Any] = {
        "tokenizer_json": tokenizer_json(),
        "tokenizer_config_json": tokenizer_config(),
    } | files
    for name, content in contents.items():
        if content is None:
            continue
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        stem, _, ending = name.rpartition("_")
        (directory / f"{stem}.{ending}").write_text(text, encoding="utf-8")
    return directory


def meta_tokenizer_model(pairs: Sequence[bytes] = (b"th", b"the", b" t", b"\n\n", b"12")) -> bytes:
    """Return a tokenizer.model of Meta's kind: bytes, and some runs of them."""
    tokens = [bytes([i]) for i in range(256)] + list(pairs)
    lines = (base64.b64encode(token) + b" %d" % i for i, token in enumerate(tokens))
    return b"\n".join(lines) + b"\n"
