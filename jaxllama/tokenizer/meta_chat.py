r"""Conversations as Meta's own reader encodes them, message by message.

A header is control tokens around a role, and what follows it is plain text: the two line ends after
a header and the content are encoded apart, so that a content that begins with a line end does not
melt into them, as it would in a text of the whole.

Source: `ChatFormat` in Meta's llama-models `llama3/chat_format.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxllama.errors import InputError
from jaxllama.tokenizer.backend import Encode, Message

# How roles are written; Meta's reader takes the first four.
_ROLES = {"user": "user", "system": "system", "assistant": "assistant", "tool": "ipython"}
_ROLES |= {"ipython": "ipython"}

Part = tuple[str, bool]  # a text, and whether it is a control token


@dataclass(frozen=True)
class MetaChat:
    """Meta's format of chats.

    Attributes:
        specials: ids of the control tokens.
    """

    specials: Mapping[str, int]
    problems: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Return a conversation as text; see `Tokenizer.render_chat`."""
        return "".join(text for text, _ in _parts(messages, options))

    def encode(
        self, messages: Sequence[Message], encode: Encode, *, specials: bool, **options: Any
    ) -> list[int]:
        """Return a conversation's ids; see `Tokenizer.encode_chat`."""
        if specials:
            raise InputError(
                "Meta's format takes the contents of messages as plain text: there is no chat with "
                "control tokens in them; encode the text of render_chat instead"
            )
        ids: list[int] = []
        for text, is_control in _parts(messages, options):
            ids += [self.specials[text]] if is_control else encode(text, specials=False)
        return ids


def _parts(messages: Sequence[Message], options: Mapping[str, Any]) -> Iterator[Part]:
    given = dict(options)
    prompted = given.pop("add_generation_prompt")
    if unknown := sorted(name for name, value in given.items() if value is not None):
        raise InputError(
            f"Meta's format has no place for {', '.join(unknown)}; write it into a system message"
        )
    yield "<|begin_of_text|>", True
    for number, message in enumerate(messages):
        yield from _message(message, f"message {number}")
    if prompted:
        yield from _header("assistant")


def _header(role: str) -> Iterator[Part]:
    yield "<|start_header_id|>", True
    yield role, False
    yield "<|end_header_id|>", True
    yield "\n\n", False


def _message(message: Message, where: str) -> Iterator[Part]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is a {type(message).__name__}, expected a dict")
    role = message.get("role")
    if role not in _ROLES:
        raise InputError(f"{where} has role {role!r}; Meta's format has {', '.join(_ROLES)}")
    if message.get("tool_calls"):
        raise InputError(f"{where} has tool_calls; give the call as its content, as text")
    yield from _header(_ROLES[role])
    yield from _content(message.get("content"), f"{where}: content")
    if role == "user" and message.get("context") is not None:
        yield "\n\n", False
        yield from _content(message["context"], f"{where}: context")
    unfinished = role == "assistant" and message.get("stop_reason") == "end_of_message"
    yield "<|eom_id|>" if unfinished else "<|eot_id|>", True


def _content(content: Any, where: str) -> Iterator[Part]:
    """Yield a text, or each text of a list on its own."""
    for item in content if isinstance(content, list | tuple) else [content]:
        is_text = isinstance(item, Mapping) and item.get("type", "text") == "text"
        text = item.get("text") if is_text else item
        if not isinstance(text, str):
            raise InputError(f"{where} is {text!r:.60}, expected text; images are not supported")
        yield text, False
