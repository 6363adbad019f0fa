"""Meta's tokenizer.model made of a tokenizer.json of the same family, or why there is none.

Both merge byte pairs, but by other rules: a tokenizer.json lists pairs in their order, tiktoken
joins any two neighbours whose bytes together are a token, the one of least rank first. They are the
same where tokens are ranked by their ids, and every way to cut a token in two is a pair.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from jaxllama import files
from jaxllama.errors import CheckpointError
from jaxllama.tokenizer.backend import library_errors
from jaxllama.tokenizer.bytes import spelled_bytes
from jaxllama.tokenizer.model_file import (
    LLAMA3_SPLIT,
    META_SPECIAL_COUNT,
    meta_special_tokens,
    read_model_file,
)

# Without which Meta's own programs cannot ask the model anything.
_REQUIRED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
# Bytes of a token; the ways to cut one are looked at by their square.
_LONGEST = 2000
# Placeholders, numbered otherwise from one release to the next.
_RESERVED = "<|reserved_special_token_"
_OFF = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": LLAMA3_SPLIT},
    "behavior": "Isolated",
    "invert": False,
}


def write_model_file(content: bytes, rows: int) -> bytes:
    """Return the tokenizer.model that gives the same ids as a tokenizer.json.

    Args:
        content: of tokenizer.json.
        rows: of the embedding.

    Raises:
        CheckpointError: no tokenizer.model does. The reason is its message.
    """
    stated = files.parse_object(content, "tokenizer.json")
    with library_errors("it cannot be read"):
        ours = tokenizers.Tokenizer.from_str(content.decode())  # which knows the file's form
        _check_cuts(stated)
        ordinary = _ordinary(stated)
        _check_merges(stated["model"], ordinary)
        _check_specials(stated, len(ordinary), rows)
        lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ordinary.items()]
        written = b"".join(lines)
        _prove(ours, written, list(ordinary))
    return written


def _ordinary(stated: Mapping[str, Any]) -> dict[bytes, int]:
    """Return the bytes of all tokens but the added ones, by rank."""
    model = stated.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"its model is {model.get('type')}, not byte-level BPE")
    byte_of = {letter: i for i, letter in spelled_bytes().items()}
    added = {token["content"] for token in stated.get("added_tokens") or []}
    ranked: dict[bytes, int] = {}
    for text, rank in sorted(model["vocab"].items(), key=lambda item: item[1]):
        if text in added:
            continue
        if not set(text) <= byte_of.keys():
            raise CheckpointError(f"token {text!r:.80} does not spell bytes")
        if len(text) > _LONGEST:
            raise CheckpointError(f"token {text[:40]!r}... has {len(text)} bytes")
        ranked[bytes(byte_of[letter] for letter in text)] = rank
    if list(ranked.values()) != list(range(len(ranked))):
        raise CheckpointError("the ids of its ordinary tokens are not 0, 1, 2, ...")
    if missing := [i for i in range(256) if bytes([i]) not in ranked]:
        raise CheckpointError(f"byte {missing[0]} is no token")
    return ranked


def _check_cuts(stated: Mapping[str, Any]) -> None:
    if stated.get("normalizer") is not None:
        raise CheckpointError("it changes texts before they are cut (normalizer)")
    pre = stated.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    level = steps[-1] if steps else {}
    if steps[:-1] != [_SPLIT] or (
        level.get("type") != "ByteLevel" or level.get("use_regex") or level.get("add_prefix_space")
    ):
        raise CheckpointError("it does not cut texts where Llama 3 does (pre_tokenizer)")


def _check_merges(model: Mapping[str, Any], ranks: Mapping[bytes, int]) -> None:
    """See that pairs are those that ranks give, in the order of ranks."""
    if off := [setting for setting in _OFF if model.get(setting)]:
        raise CheckpointError(f"its model has {off[0]}")
    byte_of = {letter: i for i, letter in spelled_bytes().items()}
    listed = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        left, right = (bytes(byte_of[letter] for letter in part) for part in pair)
        listed.append((left, right))
    order = [ranks.get(left + right, -1) for left, right in listed]
    if order != sorted(order) or -1 in order[:1]:
        raise CheckpointError("its merges are not in the order of the ids that they give")
    cuts = {
        (token[:at], token[at:])
        for token in ranks
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    }
    if cuts != set(listed):
        raise CheckpointError(
            f"{len(cuts - set(listed))} of the {len(cuts)} pairs that its tokens are cut into are "
            "no merges, but would be by their ranks"
        )
    if not model.get("ignore_merges") and any(
        len(token) > 1 and _merged(token, ranks) != [token] for token in ranks
    ):
        raise CheckpointError("some of its tokens cannot be reached by merges (ignore_merges)")


def _merged(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    parts = [bytes([i]) for i in token]
    while len(parts) > 1:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        if (least := min(joined)) == len(ranks):
            break
        at = joined.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _check_specials(stated: Mapping[str, Any], first: int, rows: int) -> None:
    """See that Meta's reader, which numbers special tokens by heart, gives the same ids."""
    if rows != first + META_SPECIAL_COUNT:
        raise CheckpointError(
            f"Meta's reader makes {first + META_SPECIAL_COUNT} tokens of it, {META_SPECIAL_COUNT} "
            f"special ones among them; the embedding has {rows} rows"
        )
    by_heart = meta_special_tokens(first)
    added = {token["content"]: token["id"] for token in stated.get("added_tokens") or []}
    for text in (*_REQUIRED, *(t for t in added if not t.startswith(_RESERVED))):
        if by_heart.get(text) != added.get(text):
            theirs = by_heart.get(text, "no special token")
            ours = added.get(text, "none")
            raise CheckpointError(f"{text!r} is {ours} in it, {theirs} to Meta's reader")


def _prove(ours: tokenizers.Tokenizer, written: bytes, tokens: list[bytes]) -> None:
    """Encode a text with both: every token that is text, in an order that puts any two together."""
    theirs = read_model_file(written, "tokenizer.model").backend
    ours.encode_special_tokens = True
    ours.no_truncation()
    texts = [text for token in tokens if (text := token.decode(errors="ignore"))]
    random.Random(0).shuffle(texts)
    for i in range(0, len(texts), 1000):
        text = "".join(texts[i : i + 1000])
        expected = ours.encode(text, add_special_tokens=False).ids
        if theirs.encode(text, specials=False) != expected:
            pieces = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated")
            wrong = next(
                (
                    piece
                    for piece, _ in pieces.pre_tokenize_str(text)
                    if theirs.encode(piece, specials=False)
                    != ours.encode(piece, add_special_tokens=False).ids
                ),
                text[:20],
            )
            raise CheckpointError(f"{wrong!r} gets other ids by ranks than by its merges")
