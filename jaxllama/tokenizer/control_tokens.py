"""Control tokens that a user's text must not turn into: they stay the text that they are.

Strings that a conversation brings are marked before the template sees them: each control token in
them stands between two characters of private use. Of what the template has made, the marked parts
are encoded as plain text and all others as usual, so that control tokens are the template's alone.

Source: `sanitize_control_tokens` in Hugging Face transformers 5.23, to whose ids
`tests/jaxllama/tokenizer/test_chat_differential.py` holds these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxllama.errors import InputError

_OPEN, _CLOSE = "\U000f0000", "\U000f0001"


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of these texts, the longest first."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def mark(value: Any, control: re.Pattern[str]) -> Any:
    """Return a value of JSON with every control token in its strings marked; keys are left."""
    if isinstance(value, str):
        # Marks of the user's own would pass for ours.
        plain = value.replace(_OPEN, "").replace(_CLOSE, "")
        return control.sub(rf"{_OPEN}\g<0>{_CLOSE}", plain)
    if isinstance(value, Mapping):
        return {key: mark(item, control) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mark(item, control) for item in value]
    return value


def encode_marked(
    text: str,
    known: Mapping[str, int],
    encode: Callable[[str], list[int]],
    encode_plain: Callable[[str], list[int]],
) -> list[int]:
    """Return ids of a text with marks in it.

    A template may cut a marked token in two; a mark alone is dropped, and parts the text there.

    Args:
        text: what a template made of marked strings.
        known: ids of all added tokens by text, any of which may be marked.
        encode: ids of a text in which added tokens count.
        encode_plain: ids of a text in which none does.

    Raises:
        InputError: a control token is an ordinary token too, so that it has no other form.
    """
    marked = re.compile(f"{_OPEN}({pattern_of(known).pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]")
    first, *rest = marked.split(text)
    ids = encode(first)
    for number, part in enumerate(rest):
        if not part:
            continue
        as_text = number % 2 == 0
        added = _inside(part, encode_plain if as_text else encode, encode("\n"))
        if as_text and known[part] in added:
            raise InputError(
                f"{part!r} in a message is a control token that this vocabulary cannot spell as "
                "text; take it out of the message"
            )
        ids += added
    return ids


def _inside(part: str, encode: Callable[[str], list[int]], newline: list[int]) -> list[int]:
    """Encode what has text before it: some tokenizers put a space before what begins a text."""
    ids = encode("\n" + part)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(part)
