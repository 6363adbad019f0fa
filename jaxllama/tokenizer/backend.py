"""What a tokenizer's file has to give: ids of text, text of ids, and conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxllama.errors import CheckpointError, InputError, JaxLlamaError

Message = Mapping[str, Any]


class Backend(Protocol):
    """Turns text into ids and back."""

    def encode(self, text: str, *, specials: bool) -> list[int]:
        """Return ids, without a bos."""

    def encode_plain(self, text: str) -> list[int]:
        """Return ids of a text in which no added token counts, be it special or not."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""


class Encode(Protocol):
    """Turns a text into ids, without a bos."""

    def __call__(self, text: str, *, specials: bool) -> list[int]:
        """Return ids; see `Backend.encode`."""


class Chat(Protocol):
    """Turns conversations into text and ids."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is damaged in it, a line each."""

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Return a conversation as text."""

    def encode(
        self, messages: Sequence[Message], encode: Encode, *, specials: bool, **options: Any
    ) -> list[int]:
        """Return a conversation as ids; control tokens in it are text unless `specials`."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a file of a tokenizer is read into; see `Tokenizer` for what they mean."""

    backend: Backend
    vocab_size: int
    special_tokens: Mapping[str, int]
    bos_id: int | None
    eos_ids: Sequence[int]
    pad_id: int | None
    adds_bos: bool
    chat_template: str | None
    chat: Chat | None
    notes: tuple[str, ...] = field(default=())


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what a tokenizer's library raises into a `CheckpointError`: it may be anything.

    Its panics, which are no `Exception`, too: they leave nothing behind that is used again.

    Args:
        what: begins the message.
    """
    try:
        yield
    except JaxLlamaError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{what}: {said}") from error


def check_text(text: str) -> None:
    """Refuse what no UTF-8 can hold.

    Raises:
        InputError: there is a lone surrogate, which is how Python hands on bytes of a command line
            or file name that are not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"text {text[error.start :][:8]!r} at character {error.start}: a lone surrogate "
            "is no text; give it in UTF-8"
        ) from error
