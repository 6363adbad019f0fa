"""Conversations by a chat template, and who is to blame where one fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from jaxllama.errors import CheckpointError, InputError, LimitError
from jaxllama.sandbox.process import ask
from jaxllama.tokenizer.backend import Encode, Message
from jaxllama.tokenizer.control_tokens import encode_marked, mark, pattern_of

# What any template takes, unless it is broken; some want a system's word first.
_PLAIN = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
)
_MEND = "mend the template (chat_template.jinja, or chat_template in tokenizer_config.json)"
# Names of what an assistant thought; templates read the first, or else the second.
# Source: `_REASONING_FIELDS` in transformers' `chat_template_utils.py`.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class AddedTexts:
    """Tokens that stand beside the vocabulary, by text.

    Attributes:
        ids: of all of them.
        special: those that are control tokens by themselves.
        control: those that the files call control tokens of chats; None if they do not say.
    """

    ids: Mapping[str, int]
    special: Collection[str]
    control: Collection[str] | None = None

    def pattern(self, template: str) -> re.Pattern[str]:
        """Return what finds control tokens: special ones, and those that the template writes."""
        written = "\0".join(_literal_texts(template)) if self.control is None else ""
        listed = {*self.special, *(self.control or ())}

        def controls(text: str) -> bool:
            # White space is text to templates, be it a token or not.
            return text in listed or (not text.isspace() and text in written)

        return pattern_of(text for text in self.ids if controls(text))


@dataclass(frozen=True)
class TemplateChat:
    """Conversations by the templates of a tokenizer's files.

    Attributes:
        templates: by name; `default`, and `tool_use` where tools are given.
        variables: special tokens as the files spell them: `bos_token`, `eos_token` and others.
        added: added tokens.
        encode_plain: ids of a text in which no added token counts.
        source: what to call the files in an error.
    """

    templates: Mapping[str, str]
    variables: Mapping[str, str]
    added: AddedTexts
    encode_plain: Callable[[str], list[int]]
    source: str

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Return a conversation as text.

        Args:
            messages: each with `role` and `content`, and what else the template reads.
            options: `add_generation_prompt`, `tools`, `documents`, and variables of the template's
                own.

        Raises:
            InputError: the template does not take these messages.
            CheckpointError: the template itself is at fault; a `LimitError` if it takes too much.
        """
        template = self._template(options.get("tools"))
        values = {"tools": None, "documents": None, **self.variables, **options}
        try:
            variables, given = _plain(values, "options"), _messages(messages)
        except RecursionError:
            raise InputError("messages or options are nested too deep") from None
        said = ask("render", template, {**variables, "messages": given})
        if "text" in said:
            return str(said["text"])
        if "refused" in said:
            raise InputError(f"the chat template refuses these messages: {said['refused']}")
        if "beyond" in said:
            raise LimitError(f"{self.source}: the chat template {said['beyond']}; {_MEND}")
        if _takes_any(template, variables):
            raise InputError(f"the chat template cannot take these messages: {said['failed']}")
        raise CheckpointError(
            f"{self.source}: the chat template fails on any conversation: {said['failed']}; {_MEND}"
        )

    def encode(
        self, messages: Sequence[Message], encode: Encode, *, specials: bool, **options: Any
    ) -> list[int]:
        """Return a conversation's ids; raises as `render` does."""
        if specials:
            return encode(self.render(messages, **options), specials=True)
        control = self.added.pattern(self._template(options.get("tools")))
        marked = {name: mark(value, control) for name, value in options.items()}
        text = self.render(mark(list(messages), control), **marked)
        return encode_marked(
            text, self.added.ids, partial(encode, specials=True), self.encode_plain
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with templates that cannot be parsed, a line each."""
        return tuple(filter(None, map(self._problem, self.templates)))

    def _problem(self, name: str) -> str:
        said = _parsed(self.templates[name])
        called = "the chat template" if name == "default" else f"the chat template {name!r:.80}"
        if "beyond" in said:
            return f"{called} {said['beyond']}; {_MEND}"
        if "failed" in said:
            return f"{called} cannot be parsed: {said['failed']}; {_MEND}"
        return ""

    def _template(self, tools: Any) -> str:
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise InputError(
                f"{self.source}: has chat templates {', '.join(sorted(self.templates))}, and none "
                "called default"
            )
        if problem := self._problem(name):
            kind = LimitError if "beyond" in _parsed(self.templates[name]) else CheckpointError
            raise kind(f"{self.source}: {problem}")
        return self.templates[name]


@lru_cache(maxsize=8)
def _parsed(template: str) -> dict[str, Any]:
    return ask("parse", template)


@lru_cache(maxsize=8)
def _literal_texts(template: str) -> tuple[str, ...]:
    """Return what a template writes by itself; nothing of one that fails, which is said later."""
    return tuple(ask("literals", template).get("texts", ()))


def _takes_any(template: str, variables: Mapping[str, Any]) -> bool:
    """Whether a template takes some conversation that every template should; refusing is whole."""
    said = (ask("render", template, {**variables, "messages": messages}) for messages in _PLAIN)
    return any("text" in one or "refused" in one for one in said)


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as a template sees them: without what is None, thoughts under every name."""
    if not messages:
        raise InputError("a conversation of no messages; give at least one")
    made = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(
                f"message {number} is a {type(message).__name__}, expected a dict with role and "
                "content"
            )
        given = {key: item for key, item in message.items() if item is not None}
        plain = _plain(given, f"message {number}")
        thought = next((plain[name] for name in _REASONING if name in plain), None)
        if thought is not None:
            plain = {"thinking": thought, **plain, "reasoning_content": thought}
        made.append(plain)
    return made


def _plain(value: Any, where: str) -> Any:
    """Copy what is of JSON's types: other objects have methods that a sandbox does not know."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass, such as an enum, the text alone
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, where) for item in value)
    raise InputError(
        f"{where} holds a {type(value).__name__}, expected text, numbers, lists and dicts alone"
    )
