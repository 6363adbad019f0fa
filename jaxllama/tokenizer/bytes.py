"""A tokenizer whose token ids are bytes, for checkpoints that are made to try things on."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers


def spelled_bytes() -> dict[int, str]:
    """Return the letter that byte-level vocabularies spell each byte with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in spelled)
    spelled |= {b: chr(256 + i) for i, b in enumerate(others)}
    return {b: spelled[b] for b in range(256)}


def byte_tokenizer_json(specials: Sequence[str]) -> bytes:
    """Return a tokenizer.json whose token ids are the bytes of the text in UTF-8.

    Args:
        specials: texts of special tokens, with ids from 256.
    """
    vocabulary = {letter: b for b, letter in spelled_bytes().items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(text, normalized=False, special=True) for text in specials]
    tokenizer.add_special_tokens(added)
    return tokenizer.to_str(pretty=False).encode()
