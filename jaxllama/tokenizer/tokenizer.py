"""The tokenizer of a checkpoint: what it does comes from its files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllama import files
from jaxllama.errors import InputError
from jaxllama.files import limits
from jaxllama.tokenizer.apart import read_apart
from jaxllama.tokenizer.backend import Chat, Message, Parts

if TYPE_CHECKING:
    from jaxllama.config import LlamaConfig


class Tokenizer:
    """A tokenizer read from a checkpoint's files.

    Attributes:
        vocab_size: one more than the highest token id.
        special_tokens: ids by text.
        bos_id: token that begins a text, if there is one.
        eos_ids: tokens that end a generation.
        pad_id: token that fills rows up, if there is one.
        adds_bos: whether `encode` puts `bos_id` first unless told otherwise.
        chat_template: Jinja source, if there is one; Meta's format of chats has none.
        has_chat: whether conversations can be encoded.
        notes: what is odd in the files and does no harm.
        problems: what is damaged in them, though plain texts can be encoded.
    """

    def __init__(self, parts: Parts):
        self._backend, self._chat = parts.backend, parts.chat
        self.vocab_size = parts.vocab_size
        self.special_tokens = dict(parts.special_tokens)
        self.bos_id, self.eos_ids, self.pad_id = parts.bos_id, tuple(parts.eos_ids), parts.pad_id
        self.adds_bos = parts.adds_bos
        self.chat_template = parts.chat_template
        self.has_chat = parts.chat is not None
        self.notes = parts.notes
        self.problems = parts.chat.problems if parts.chat else ()

    @classmethod
    def from_directory(cls, path: Path | str) -> Tokenizer:
        """Read a directory's tokenizer.json, or else its tokenizer.model.

        Raises:
            CheckpointError: there is neither, or it cannot be read.
        """
        path = Path(path)
        names = (
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "generation_config.json",
            "chat_template.jinja",
            "config.json",
        )
        found = {
            name: files.read_bytes(files.inside(path, name), limits.TOKENIZER_BYTES)
            for name in names
            if (path / name).is_file()
        }
        made = cls.from_files(found, source=str(path))
        made.notes = (*made.notes, *_left_unread(path))
        return made

    @classmethod
    def from_files(
        cls, found: Mapping[str, bytes], *, source: str, config: LlamaConfig | None = None
    ) -> Tokenizer:
        """Read a tokenizer from the contents of its files.

        Args:
            found: contents by file name, as `from_directory` reads them.
            source: what to call them in an error.
            config: where special tokens come from that no file names.

        Raises:
            CheckpointError: there is no tokenizer, or it cannot be read.
        """
        return cls(read_apart(found, source, config))

    def encode(self, text: str, *, bos: bool | None = None, specials: bool = True) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: any text.
            bos: whether `bos_id` comes first; as the tokenizer's files say if not given.
            specials: whether special tokens written in the text become those tokens. Switch it
                off for text from a stranger.

        Raises:
            InputError: `bos` is asked for and there is none, or the text holds what no UTF-8 can.
        """
        ids = self._backend.encode(text, specials=specials)
        if self.adds_bos if bos is None else bos:
            if self.bos_id is None:
                raise InputError("this tokenizer has no token that begins a text (bos)")
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        ids = [int(i) for i in ids]
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise InputError(f"token id {wrong[0]}, expected 0 to {self.vocab_size - 1}")
        if skip_special:
            special = set(self.special_tokens.values())
            ids = [i for i in ids if i not in special]
        return self._backend.decode(ids)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """Return a conversation as the text the model was trained on.

        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: whether to end where the assistant's answer begins.
            tools: descriptions of what the model may call, for templates that show them.
            documents: texts that the model may quote, likewise.
            variables: others that the template reads.

        Raises:
            InputError: there is no template, or it refuses the messages.
            CheckpointError: the template itself is at fault.
        """
        options = {"tools": tools, "documents": documents, **variables}
        return self._chats().render(
            messages, add_generation_prompt=add_generation_prompt, **options
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        specials: bool = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Return the token ids of a conversation; the template says whether bos comes first.

        Control tokens are the template's alone: one that is written in a message, tool or document
        is encoded as the text that it is, so that no user can open another's turn.

        Args:
            messages: see `render_chat`; so are the others.
            add_generation_prompt: likewise.
            specials: whether control tokens written in messages become those tokens after all, as
                of messages that your own program has made of such.
            tools: likewise.
            documents: likewise.
            variables: likewise.

        Raises:
            InputError: see `render_chat`; or a control token has no spelling as text.
            CheckpointError: see `render_chat`.
        """
        options = {"tools": tools, "documents": documents, **variables}
        return self._chats().encode(
            messages,
            partial(self.encode, bos=False),
            specials=specials,
            add_generation_prompt=add_generation_prompt,
            **options,
        )

    def _chats(self) -> Chat:
        if self._chat is None:
            raise InputError("this tokenizer has no chat template; give a plain prompt instead")
        return self._chat


def _left_unread(path: Path) -> list[str]:
    """Return notes on chat templates in files that transformers has and that are not read here."""
    found = [*sorted(path.glob("additional_chat_templates/*.jinja")), path / "chat_template.json"]
    return [
        f"{file.relative_to(path)} is not read: a chat template of its own"
        for file in found
        if file.is_file()
    ]
