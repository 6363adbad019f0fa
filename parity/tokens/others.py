"""Other implementations of a checkpoint's tokenizer: transformers, and Meta's own.

Neither sees what `jaxllama` made of the files: they read these themselves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxllama.errors import InputError
from parity.tokens.texts import Conversation

META_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"


class OtherTokenizer(Protocol):
    """What `parity.tokens.compare` asks of an implementation.

    Attributes:
        name: how reports call it.
        special_tokens: ids by text.
        bos_id, eos_ids, pad_id: of these roles.
        vocab_size: one more than the highest id.
        has_chat: whether there is a template.
    """

    name: str
    special_tokens: dict[str, int]
    bos_id: int | None
    eos_ids: set[int]
    pad_id: int | None
    vocab_size: int
    has_chat: bool

    def encode(self, text: str) -> list[int]:
        """Return ids as the tokenizer's files ask for: with bos if they do."""

    def encode_plain(self, text: str) -> list[int]:
        """Return ids of a text in which special tokens are but text, and without bos."""

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of ids."""

    def chat_text(self, messages: Conversation, *, prompted: bool) -> str | None:
        """Return a conversation as text, where that is told apart from its ids.

        Raises:
            ValueError: the template refuses it.
        """

    def chat_ids(self, messages: Conversation, *, prompted: bool) -> list[int]:
        """Return a conversation's ids; raises as `chat_text` does."""


def kind_of(names: Sequence[str]) -> str | None:
    """Return which of a checkpoint's files holds its tokenizer; None if none does."""
    return next((name for name in (JSON_FILE, META_FILE) if name in names), None)


def require_package(kind: str) -> None:
    """Refuse early what is not installed.

    Args:
        kind: as `kind_of` returns it.

    Raises:
        InputError: the package that reads such a file is not there.
    """
    package, extra = ("transformers", "parity") if kind == JSON_FILE else ("llama_models", "meta")
    try:
        if kind == JSON_FILE:
            import transformers  # noqa: F401
        else:
            import llama_models.llama3.chat_format  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"mode tokens: a {kind} is compared with what {package} makes of it, and "
            f"{error.name} is not installed: pip install 'jaxllama[{extra}]'"
        ) from error


def other_tokenizer(
    companions: Mapping[str, Callable[[], bytes]], config: Mapping[str, Any]
) -> OtherTokenizer:
    """Return another implementation over a checkpoint's files.

    Args:
        companions: readers of the files by name, one of which `kind_of` knows.
        config: content of the checkpoint's config.json.

    Raises:
        InputError: the package is not installed, or does not take the files.
    """
    kind = kind_of([*companions])
    assert kind is not None
    require_package(kind)
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        for name, read in companions.items():
            (Path(folder) / name).write_bytes(read())
        try:
            if kind == JSON_FILE:
                return TransformersTokenizer(Path(folder), config)
            return MetaTokenizer(Path(folder) / META_FILE)
        except Exception as error:  # neither says what it raises
            name = TransformersTokenizer.name if kind == JSON_FILE else MetaTokenizer.name
            raise InputError(
                f"mode tokens: {name} does not take the checkpoint's {kind}, with which it was "
                f"to be compared: {error}"
            ) from error


class TransformersTokenizer:
    """transformers' fast tokenizer of a directory's tokenizer.json.

    Args:
        folder: with the tokenizer's files.
        config: of the model, for roles that the tokenizer's own files leave open.
    """

    name = "transformers"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from transformers import PreTrainedTokenizerFast

        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        known = self._tokenizer.added_tokens_decoder
        # Two files may call a token special and not; what counts is whether texts leave it out.
        self.special_tokens = {
            one.content: i for i, one in known.items() if not self.decode([i], skip_special=True)
        }
        file = folder / "generation_config.json"
        settings = {**config, **(json.loads(file.read_bytes()) if file.is_file() else {})}
        own = self._tokenizer
        self.bos_id = settings.get("bos_token_id") if own.bos_token is None else own.bos_token_id
        self.pad_id = settings.get("pad_token_id") if own.pad_token is None else own.pad_token_id
        # A model may end on more tokens than the tokenizer's one.
        ends = settings.get("eos_token_id")
        ends = own.eos_token_id if ends is None else ends
        self.eos_ids = {*ends} if isinstance(ends, list) else {ends} - {None}
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        self.has_chat = self._tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        return [*self._tokenizer(text)["input_ids"]]

    def encode_plain(self, text: str) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return [*self._tokenizer(text, **options)["input_ids"]]

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        options = {"skip_special_tokens": skip_special, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode([*ids], **options))

    def chat_text(self, messages: Conversation, *, prompted: bool) -> str | None:
        return str(self._chat(messages, prompted, tokenize=False))

    def chat_ids(self, messages: Conversation, *, prompted: bool) -> list[int]:
        return [*self._chat(messages, prompted, tokenize=True)["input_ids"]]

    def _chat(self, messages: Conversation, prompted: bool, *, tokenize: bool) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                [*messages],
                add_generation_prompt=prompted,
                tokenize=tokenize,
                return_dict=tokenize,
                # As text that a user has written, so that no turn of another can be opened in it.
                sanitize_control_tokens=tokenize,
            )
        except Exception as error:  # a template may fail in any way
            raise ValueError(str(error)) from error


class MetaTokenizer:
    """Meta's published tokenizer and chat format over a tokenizer.model.

    Args:
        file: the tokenizer.model.
    """

    name = "llama-models"
    has_chat = True

    def __init__(self, file: Path) -> None:
        from llama_models.llama3.chat_format import ChatFormat
        from llama_models.llama3.tokenizer import Tokenizer

        self._tokenizer = Tokenizer(file)
        self._format = ChatFormat(self._tokenizer)
        self.special_tokens = dict(self._tokenizer.special_tokens)
        self.bos_id: int | None = self._tokenizer.bos_id
        self.pad_id: int | None = self._tokenizer.pad_id
        self.eos_ids = {*self._tokenizer.stop_tokens}
        self.vocab_size = self._tokenizer.n_words

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=True, eos=False, allowed_special="all")

    def encode_plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=False, eos=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        special = {*self.special_tokens.values()} if skip_special else set()
        return self._tokenizer.decode([i for i in ids if i not in special])

    def chat_text(self, messages: Conversation, *, prompted: bool) -> str | None:
        return None

    def chat_ids(self, messages: Conversation, *, prompted: bool) -> list[int]:
        from llama_models.datatypes import RawMessage

        ids = self._format.encode_dialog_prompt([RawMessage(**one) for one in messages]).tokens
        if prompted:
            return [*ids]
        opening = len(self._format._encode_header("assistant"))
        return [*ids[: len(ids) - opening]]
