"""Meta's tokenizer.model: byte pairs by rank, and special tokens that its reader knows by heart."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import tiktoken

from jaxllama.errors import CheckpointError
from jaxllama.files import limits
from jaxllama.tokenizer.backend import Parts, check_text, library_errors
from jaxllama.tokenizer.meta_chat import MetaChat

# Where text is cut before byte pairs are merged.
# Source: Meta's llama-models `llama3/tokenizer.py`; tokenizer.json of Llama 3 has the same.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_META_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
META_SPECIAL_COUNT = 256
# tiktoken fails on longer runs. Source: the constants of the same names' file in llama-models.
_MAX_CHARACTERS, _MAX_RUN = 400_000, 25_000


_FAILS = "tokenizer.model: the tiktoken library fails"


class _TiktokenBackend:
    def __init__(self, encoding: tiktoken.Encoding):
        self._encoding = encoding

    def encode(self, text: str, *, specials: bool) -> list[int]:
        check_text(text)
        allowed: Any = "all" if specials else set()
        return [
            token
            for start in range(0, len(text), _MAX_CHARACTERS)
            for part in _short_runs(text[start : start + _MAX_CHARACTERS])
            for token in self._encode(part, allowed)
        ]

    def encode_plain(self, text: str) -> list[int]:
        return self.encode(text, specials=False)

    def _encode(self, text: str, allowed: Any) -> list[int]:
        with library_errors(_FAILS):
            return self._encoding.encode(text, allowed_special=allowed, disallowed_special=())

    def decode(self, ids: Sequence[int]) -> str:
        with library_errors(_FAILS):
            return self._encoding.decode(list(ids))


def _short_runs(text: str) -> Iterator[str]:
    """Cut a text where a run of (non-)space characters exceeds the limit, as Meta's reader does."""
    start, run, in_space = 0, 0, text[:1].isspace()
    for i, character in enumerate(text):
        run = run + 1 if character.isspace() == in_space else 1
        in_space = character.isspace()
        if run > _MAX_RUN:
            yield text[start:i]
            start, run = i, 1
    yield text[start:]


def meta_special_tokens(first: int) -> dict[str, int]:
    """Return the special tokens that Meta's reader knows, by text; their ids begin at `first`."""
    count = META_SPECIAL_COUNT - len(_META_SPECIALS)
    reserved = (f"<|reserved_special_token_{2 + i}|>" for i in range(count))
    return {text: first + i for i, text in enumerate((*_META_SPECIALS, *reserved))}


def read_model_file(content: bytes, source: str) -> Parts:
    """Read Meta's tokenizer.model: a line for each token, its bytes in base64 and its rank.

    Raises:
        CheckpointError: it is damaged, or of another kind.
    """
    ranks: dict[bytes, int] = {}
    lines = content.splitlines()
    if len(lines) > limits.TOKENS:
        raise CheckpointError(
            f"{source}: tokenizer.model has {len(lines)} lines, at most {limits.TOKENS} are "
            "accepted"
        )
    try:
        for line in lines:
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
        raise CheckpointError(
            f"{source}: tokenizer.model line {len(ranks) + 1} is no token with its rank: {error}; "
            "a SentencePiece file of Llama 2 is not supported"
        ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise CheckpointError(f"{source}: tokenizer.model does not rank its tokens 0, 1, 2, ...")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise CheckpointError(f"{source}: tokenizer.model has no token of byte {missing[0]}")
    special = meta_special_tokens(len(ranks))
    with library_errors(f"{source}: tokenizer.model cannot be read"):
        encoding = tiktoken.Encoding(
            name=source, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=special
        )
    return Parts(
        backend=_TiktokenBackend(encoding),
        vocab_size=len(ranks) + len(special),
        special_tokens=special,
        bos_id=special["<|begin_of_text|>"],
        eos_ids=[special[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id")],
        pad_id=special["<|finetune_right_pad_id|>"],
        adds_bos=True,
        chat_template=None,
        chat=MetaChat(special),
    )
