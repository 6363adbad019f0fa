"""`jaxllama.text` as what `parity.tokens` asks of it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxllama.text import TextStream
from jaxllama.tokenizer import Tokenizer


def streamed_text(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str]) -> str:
    """Return all that is shown of tokens that come one by one."""
    stream = TextStream(tokenizer, stop)
    return "".join([*map(stream.feed, ids), stream.finish()])
