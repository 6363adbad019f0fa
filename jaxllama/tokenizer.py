"""Text to token ids and back: HF's tokenizer.json, Meta's tokenizer.model, chat templates.

What a tokenizer does comes from its files alone, special tokens and chat template included.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jinja2
import tiktoken
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from jaxllama import files
from jaxllama.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from jaxllama.config import LlamaConfig

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
_META_SPECIAL_COUNT = 256
# Meta's tokenizer.model comes without a template; this is the format of its published models.
# Source: `ChatFormat` in Meta's llama-models `llama3/chat_format.py`.
_META_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# tiktoken fails on longer runs. Source: the constants of the same names' file in llama-models.
_MAX_CHARACTERS, _MAX_RUN = 400_000, 25_000


class _Backend(Protocol):
    def encode(self, text: str, *, specials: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Tokenizer:
    """A tokenizer read from a checkpoint's files.

    Attributes:
        vocab_size: one more than the highest token id.
        special_tokens: ids by text.
        bos_id: token that begins a text, if there is one.
        eos_ids: tokens that end a generation.
        pad_id: token that fills rows up, if there is one.
        adds_bos: whether `encode` puts `bos_id` first unless told otherwise.
        chat_template: Jinja source, if there is one.
    """

    def __init__(
        self,
        backend: _Backend,
        *,
        vocab_size: int,
        special_tokens: Mapping[str, int],
        bos_id: int | None,
        eos_ids: Sequence[int],
        pad_id: int | None,
        adds_bos: bool,
        chat_template: str | None,
    ):
        self._backend = backend
        self.vocab_size = vocab_size
        self.special_tokens = dict(special_tokens)
        self.bos_id, self.eos_ids, self.pad_id = bos_id, tuple(eos_ids), pad_id
        self.adds_bos = adds_bos
        self.chat_template = chat_template

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
            "generation_config.json",
            "chat_template.jinja",
            "config.json",
        )
        found = {
            name: files.read_bytes(files.inside(path, name), files.TOKENIZER_LIMIT)
            for name in names
            if (path / name).is_file()
        }
        return cls.from_files(found, source=str(path))

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
        if "tokenizer.json" in found:
            return _from_json(cls, found, source, config)
        if "tokenizer.model" in found:
            return _from_meta(cls, found["tokenizer.model"], source)
        raise CheckpointError(f"{source}: holds neither tokenizer.json nor tokenizer.model")

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
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            # How Python hands on bytes of a command line or file name that are not UTF-8.
            raise InputError(
                f"text {text[error.start :][:8]!r} at character {error.start}: a lone surrogate "
                "is no text; give it in UTF-8"
            ) from error
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
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the text the model was trained on.

        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: whether to end where the assistant's answer begins.

        Raises:
            InputError: there is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template; give a plain prompt instead")

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        # Sandboxed: a template is code from a stranger. No autoescape: its output is no HTML, and
        # "&" in a prompt has to stay "&".
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": refuse,
            "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        }
        texts = {number: text for text, number in self.special_tokens.items()}
        try:
            return environment.from_string(self.chat_template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=texts.get(self.bos_id, "") if self.bos_id is not None else "",
                eos_token=texts.get(self.eos_ids[0], "") if self.eos_ids else "",
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError) as error:
            raise InputError(f"the chat template cannot take these messages: {error}") from error

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of `render_chat`; the template says whether bos comes first."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(text, bos=False)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes HTML characters.
    return json.dumps(value, ensure_ascii=False, indent=indent)


class _JsonBackend:
    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, text: str, *, specials: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = not specials
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _from_json(
    cls: type[Tokenizer], found: Mapping[str, bytes], source: str, config: LlamaConfig | None
) -> Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(found["tokenizer.json"].decode("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{source}: tokenizer.json cannot be read: {error}") from error
    settings, generation, model = (
        _object(found, name, source)
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    )
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}

    def role(name: str) -> int | None:
        """The tokenizer's own word first, then the model's."""
        text = settings.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        number = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if number is None:
            number = generation.get(f"{name}_id", model.get(f"{name}_id"))
        return number if isinstance(number, int) else None

    # Generation's word first here: chat models end on more tokens than the tokenizer's one.
    eos = generation.get("eos_token_id", model.get("eos_token_id"))
    if eos is None and config is not None:
        eos = list(config.eos_token_ids) or None
    if eos is None:
        eos = role("eos_token")
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    bos = role("bos_token")
    if bos is None and config is not None:
        bos = config.bos_token_id
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, dict) and isinstance(t.get("name"), str)]
        template = {t["name"]: t.get("template") for t in named}.get("default")
    if "chat_template.jinja" in found:
        template = found["chat_template.jinja"].decode("utf-8", "replace")
    return cls(
        _JsonBackend(tokenizer),
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1),
        special_tokens=special,
        bos_id=bos,
        eos_ids=eos_ids,
        pad_id=role("pad_token"),
        adds_bos=bos is not None and tokenizer.encode("").ids[:1] == [bos],
        chat_template=template if isinstance(template, str) else None,
    )


def _object(found: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    return files.parse_object(found[name], f"{source}: {name}") if name in found else {}


class _TiktokenBackend:
    def __init__(self, encoding: tiktoken.Encoding):
        self._encoding = encoding

    def encode(self, text: str, *, specials: bool) -> list[int]:
        allowed: Any = "all" if specials else set()
        return [
            token
            for start in range(0, len(text), _MAX_CHARACTERS)
            for part in _short_runs(text[start : start + _MAX_CHARACTERS])
            for token in self._encoding.encode(part, allowed_special=allowed, disallowed_special=())
        ]

    def decode(self, ids: Sequence[int]) -> str:
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


def _from_meta(cls: type[Tokenizer], content: bytes, source: str) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    try:
        for line in content.splitlines():
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
    count = _META_SPECIAL_COUNT - len(_META_SPECIALS)
    reserved = (f"<|reserved_special_token_{2 + i}|>" for i in range(count))
    special = {text: len(ranks) + i for i, text in enumerate((*_META_SPECIALS, *reserved))}
    encoding = tiktoken.Encoding(
        name=source, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=special
    )
    return cls(
        _TiktokenBackend(encoding),
        vocab_size=len(ranks) + len(special),
        special_tokens=special,
        bos_id=special["<|begin_of_text|>"],
        eos_ids=[special[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id")],
        pad_id=special["<|finetune_right_pad_id|>"],
        adds_bos=True,
        chat_template=_META_TEMPLATE,
    )


def byte_tokenizer_json(specials: Sequence[str]) -> bytes:
    """Return a tokenizer.json whose token ids are the bytes of the text in UTF-8.

    Args:
        specials: texts of special tokens, with ids from 256.
    """
    # Byte-level vocabularies spell a byte as one printable character: itself, or 256 upwards.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in spelled)
    spelled |= {b: chr(256 + i) for i, b in enumerate(others)}
    vocabulary = {spelled[b]: b for b in range(256)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(text, normalized=False, special=True) for text in specials]
    tokenizer.add_special_tokens(added)
    return tokenizer.to_str(pretty=False).encode()
