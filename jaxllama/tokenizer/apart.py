"""A tokenizer whose libraries run in a process of their own, of limited time and memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxllama import errors
from jaxllama.errors import LimitError
from jaxllama.files import limits
from jaxllama.sandbox.process import Means, SandboxProcess, is_in_here
from jaxllama.tokenizer.backend import Parts
from jaxllama.tokenizer.meta_chat import MetaChat
from jaxllama.tokenizer.template_chat import AddedTexts, TemplateChat

if TYPE_CHECKING:
    from jaxllama.config import LlamaConfig

_process = SandboxProcess(
    limits.TOKENIZER_SECONDS, limits.TOKENIZER_MEMORY, "jaxllama.tokenizer.answers"
)
_numbers = itertools.count()


class BackendApart:
    """A tokenizer's backend in the other process, which is opened again after a breach.

    Args:
        found: contents of its files, by name.
        source: what to call them in an error.
        config: where special tokens come from that no file names.
    """

    def __init__(self, found: Mapping[str, bytes], source: str, config: LlamaConfig | None):
        self._files: dict[str, Any] = {"found": dict(found), "source": source, "config": config}
        self._source, self._name = source, str(next(_numbers))

    def open(self) -> dict[str, Any]:
        """Read the files; return what they say."""
        size = sum(map(len, self._files["found"].values()))
        return dict(_ask("open", self._name, self._files, size, self._source))

    def encode(self, text: str, *, specials: bool) -> list[int]:
        """Return ids, without a bos."""
        return list(self._ask("encode", len(text), text=text, specials=specials))

    def encode_plain(self, text: str) -> list[int]:
        """Return ids of a text in which no added token counts."""
        return list(self._ask("encode_plain", len(text), text=text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(self._ask("decode", len(ids), ids=list(ids)))

    def _ask(self, action: str, size: int, **given: Any) -> Any:
        found = _ask(action, self._name, given, size, self._source)
        if found is None:  # another process than the one that opened it, or long ago
            self.open()
            found = _ask(action, self._name, given, size, self._source)
        return found


def read_apart(found: Mapping[str, bytes], source: str, config: LlamaConfig | None) -> Parts:
    """Read a tokenizer; see `Tokenizer.from_files`."""
    if is_in_here():
        from jaxllama.tokenizer.answers import read

        return read(found, source, config)
    backend = BackendApart(found, source, config)
    said = backend.open()
    chat: MetaChat | TemplateChat | None = None
    if (specials := said.pop("meta", None)) is not None:
        chat = MetaChat(specials)
    elif (templates := said.pop("templates", None)) is not None:
        chat = TemplateChat(
            templates=templates,
            variables=said.pop("variables"),
            added=AddedTexts(**said.pop("added")),
            encode_plain=backend.encode_plain,
            source=source,
        )
    said["notes"] = tuple(said["notes"])
    return Parts(backend=backend, chat=chat, **said)


def write_model_file(content: bytes, rows: int) -> bytes:
    """Return the tokenizer.model of a tokenizer.json; see `model_writing.write_model_file`."""
    if is_in_here():
        from jaxllama.tokenizer import model_writing

        return model_writing.write_model_file(content, rows)
    given = {"content": content, "rows": rows}
    return str(_ask("write", "", given, len(content), "tokenizer.json")).encode("ascii")


def _ask(action: str, name: str, given: Mapping[str, Any], size: int, source: str) -> Any:
    """Return what the other process gives; None where the tokenizer is not open there.

    Raises:
        CheckpointError: the files are damaged; a `LimitError` if they take too much.
        InputError: a text that no UTF-8 can hold.
    """
    more = Means(
        size // limits.TOKENIZER_SPEED, size * limits.TOKENIZER_TIMES, size * limits.TOKENIZER_TIMES
    )
    said = _process.ask(action, name, given, more=more)
    if "beyond" in said:
        what = "be read" if action == "open" else f"{action} {size} characters or tokens"
        raise LimitError(
            f"{source}: its tokenizer {said['beyond']} to {what}; take one from its publisher"
        )
    if "error" in said:
        kind, words = said["error"]
        raise getattr(errors, kind)(words)
    if "failed" in said:
        raise RuntimeError(said["failed"])
    return said.get("given")
