"""tokenizer.json, and the files beside it that say which of its tokens are special, and for what.

Source: `PreTrainedTokenizerBase.from_pretrained` and `TokenizersBackend` in Hugging Face
transformers 5.23, to which `tests/jaxllama/tokenizer/test_files_differential.py` holds this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tokenizers

from jaxllama import files
from jaxllama.config_formats.fields import token_id, token_ids
from jaxllama.errors import CheckpointError
from jaxllama.tokenizer.backend import Parts, check_text, library_errors
from jaxllama.tokenizer.growth import check_growth
from jaxllama.tokenizer.settings import check_settings
from jaxllama.tokenizer.special_tokens import SpecialTokens, read_special_tokens
from jaxllama.tokenizer.template_chat import AddedTexts, TemplateChat

if TYPE_CHECKING:
    from jaxllama.config import LlamaConfig

JSON, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
_END_OF_TEXT = "<|end_of_text|>"


_FAILS = "tokenizer.json: the tokenizers library fails"


class _JsonBackend:
    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, text: str, *, specials: bool) -> list[int]:
        check_text(text)
        with library_errors(_FAILS):
            self._tokenizer.encode_special_tokens = not specials
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Return ids of a text in which no added token counts, be it special or not."""
        check_text(text)
        known = self._tokenizer
        with library_errors(_FAILS):
            if known.normalizer is not None:
                text = known.normalizer.normalize_str(text)
            parts = [text]
            if known.pre_tokenizer is not None:
                parts = [part for part, _ in known.pre_tokenizer.pre_tokenize_str(text)]
            return [token.id for part in parts for token in known.model.tokenize(part)]

    def decode(self, ids: Sequence[int]) -> str:
        with library_errors(_FAILS):
            return self._tokenizer.decode(ids, skip_special_tokens=False)


def read_json_file(found: Mapping[str, bytes], source: str, config: LlamaConfig | None) -> Parts:
    """Read tokenizer.json and what stands beside it.

    Args:
        found: contents by file name.
        source: what to call them in an error.
        config: where special tokens come from that no file names.

    Raises:
        CheckpointError: a file is damaged, or holds what is not understood.
    """
    with library_errors(f"{source}: {JSON} cannot be read"):
        tokenizer = tokenizers.Tokenizer.from_str(found[JSON].decode("utf-8"))
        check_growth(tokenizer, f"{source}: {JSON}")
        return _read(tokenizer, found, source, config)


def _read(
    tokenizer: tokenizers.Tokenizer,
    found: Mapping[str, bytes],
    source: str,
    config: LlamaConfig | None,
) -> Parts:
    settings, generation, model = (
        _object(found, name, source) for name in (SETTINGS, GENERATION, "config.json")
    )
    check_settings(settings, f"{source}: {SETTINGS}")
    named = read_special_tokens(found, settings, tokenizer, source)
    special = _special(tokenizer)
    notes = [*named.notes, *_without_state(tokenizer), *_add(tokenizer, named, source)]
    stated = {**model, **generation}  # of both, generation's word comes first
    bos = _role("bos_token", tokenizer, named, stated, notes)
    if bos is None and config is not None:
        bos = config.bos_token_id
    templates = _templates(found, settings, source)
    backend = _JsonBackend(tokenizer)
    added = {
        token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    special |= _special(tokenizer)  # what was special once is left out of texts for good
    around = tokenizer.encode("").ids
    ends = _ends(tokenizer, named, stated, config, notes)
    adds_bos = bos is not None and around[:1] == [bos]
    chat = TemplateChat(
        templates=templates,
        variables=named.variables,
        added=AddedTexts(ids=added, special=special, control=settings.get("chat_control_tokens")),
        encode_plain=backend.encode_plain,
        source=source,
    )
    return Parts(
        backend=backend,
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1),
        special_tokens=special,
        bos_id=bos,
        eos_ids=ends,
        pad_id=_role("pad_token", tokenizer, named, stated, notes),
        adds_bos=adds_bos,
        chat_template=templates.get("default"),
        chat=chat if templates else None,
        notes=(
            *notes,
            *_disagreements(found, settings, adds_bos),
            *_other_ids(tokenizer, named, {GENERATION: generation, "config.json": model}),
            *_own_end_left(tokenizer, named, ends, chats=bool(templates)),
            *_around(tokenizer, around, bos),
        ),
    )


def _object(found: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    return files.parse_object(found[name], f"{source}: {name}") if name in found else {}


def _special(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    known = tokenizer.get_added_tokens_decoder().items()
    return {token.content: number for number, token in known if token.special}


def _without_state(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Switch off what a training run left on: a prompt is neither cut nor filled up."""
    notes = []
    if tokenizer.truncation is not None:
        longest = tokenizer.truncation["max_length"]
        notes.append(f"{JSON} cuts texts to {longest} tokens, as a training run did: not done here")
        tokenizer.no_truncation()
    if tokenizer.padding is not None:
        notes.append(f"{JSON} fills texts up with pads, as a training run did: not done here")
        tokenizer.no_padding()
    return notes


def _add(tokenizer: tokenizers.Tokenizer, named: SpecialTokens, source: str) -> list[str]:
    """Let the tokens that the other files name count as they say; return what is odd about it."""
    # Those of tokenizer.json too, where no other file lists any: a name may make them special.
    fresh = [token for _, token in sorted(named.listed.items())]
    added = tokenizer.get_added_tokens_decoder().values()
    known = {token.content for token in (*added, *fresh)}
    roles = {token.content for token in named.roles.values()}
    for token in (*named.roles.values(), *named.others):
        if token.content not in known:
            fresh.append(token)  # of two descriptions the last counts
    for token in fresh:
        token.special = token.special or token.content in roles
    new = [token.content for token in fresh if tokenizer.token_to_id(token.content) is None]
    if fresh:
        tokenizer.add_tokens(fresh)
    for number, token in named.listed.items():
        if (got := tokenizer.token_to_id(token.content)) != number:
            raise CheckpointError(
                f"{source}: {token.content!r} is token {number} in {SETTINGS} or added_tokens.json "
                f"and {got} in {JSON}; take the files of one tokenizer"
            )
    return [
        f"{text!r} is named beside {JSON}, which has no such token: it got id "
        f"{tokenizer.token_to_id(text)}"
        for text in new
    ]


def _role(
    name: str,
    tokenizer: tokenizers.Tokenizer,
    named: SpecialTokens,
    stated: Mapping[str, Any],
    notes: list[str],
) -> int | None:
    """Return a role's token: the tokenizer's own word first, then the model's."""
    text = named.variables.get(name)
    if text is not None:
        return tokenizer.token_to_id(text)
    number = token_id(f"{name}_id", stated.get(f"{name}_id"), notes)
    return _number(f"{name}_id", number)


def _number(name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise CheckpointError(f"{name} is {value!r:.60} in {GENERATION} or config.json, expected an id")


def _ends(
    tokenizer: tokenizers.Tokenizer,
    named: SpecialTokens,
    stated: Mapping[str, Any],
    config: LlamaConfig | None,
    notes: list[str],
) -> list[int]:
    """Return what ends a text. Generation's word comes first: chat models end on several tokens."""
    found = token_ids("eos_token_id", stated.get("eos_token_id"), notes)
    ends = [number for one in found if (number := _number("eos_token_id", one)) is not None]
    if not ends and config is not None:
        ends = list(config.eos_token_ids)
    own = _role("eos_token", tokenizer, named, {}, notes)
    return ends or ([] if own is None else [own])


def _templates(
    found: Mapping[str, bytes], settings: Mapping[str, Any], source: str
) -> dict[str, str]:
    """Return chat templates by name; a file of its own stands before those of the settings."""
    if TEMPLATE in found:
        return {"default": _text(found[TEMPLATE], source)}
    stated = settings.get("chat_template")
    if stated is None:
        return {}
    if isinstance(stated, str):
        stated = {"default": stated}
    if isinstance(stated, Mapping):
        stated = [{"name": name, "template": text} for name, text in stated.items()]
    entries = stated if isinstance(stated, list) else [stated]
    templates: dict[str, str] = {}
    for entry in entries:
        name, text = (
            (entry.get("name"), entry.get("template"))
            if isinstance(entry, Mapping)
            else (None,) * 2
        )
        if not isinstance(name, str) or not isinstance(text, str):
            raise CheckpointError(
                f"{source}: chat_template in {SETTINGS} holds {entry!r:.80}, expected a text, "
                "texts by name, or a list of objects with name and template"
            )
        templates[name] = text
    return templates


def _text(content: bytes, source: str) -> str:
    """Return a template's text; raises where it is none."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: {TEMPLATE} is no text in UTF-8: {error}") from error
    if "\0" in text:
        raise CheckpointError(
            f"{source}: {TEMPLATE} holds a zero byte at {text.index(chr(0))}, so it is no text; "
            "fetch it again"
        )
    return text


def _disagreements(
    found: Mapping[str, bytes], settings: Mapping[str, Any], adds_bos: bool
) -> list[str]:
    """Say where two files answer one question, and which is taken."""
    notes = []
    if "tokenizer.model" in found:
        notes.append(f"{JSON} is read, tokenizer.model beside it is not")
    stated = settings.get("chat_template")
    if TEMPLATE in found and stated not in (None, found[TEMPLATE].decode("utf-8")):
        notes.append(f"{TEMPLATE} is taken, another chat template in {SETTINGS} is left")
    asked = settings.get("add_bos_token")
    if isinstance(asked, bool) and asked != adds_bos:
        notes.append(
            f"add_bos_token {str(asked).lower()} in {SETTINGS} is left, as in transformers 5: "
            f"{JSON} puts {'a' if adds_bos else 'no'} bos first"
        )
    return notes


def _other_ids(
    tokenizer: tokenizers.Tokenizer, named: SpecialTokens, stated: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say where the model's files give a role to another token than the tokenizer's own, taken."""
    notes = []
    for role in ("bos_token", "pad_token"):
        text = named.variables.get(role)
        for file, content in stated.items():
            number = token_id(f"{role}_id", content.get(f"{role}_id"), [])
            own = None if text is None else tokenizer.token_to_id(text)
            if own is not None and number is not None and number != own:
                notes.append(
                    f"{role} {text!r} of the tokenizer, id {own}, is taken: {role}_id {number} in "
                    f"{file} is left"
                )
    return notes


def _own_end_left(
    tokenizer: tokenizers.Tokenizer, named: SpecialTokens, ends: Sequence[int], *, chats: bool
) -> list[str]:
    """Say that the tokenizer's own end is none of the model's: a chat would go on behind it.

    Of Llama 3 the tokenizers end on a turn's end and the models that hold no chats on a text's,
    rightly.
    """
    text = named.variables.get("eos_token")
    own = None if text is None else tokenizer.token_to_id(text)
    if own is None or not ends or own in ends:
        return []
    if not chats and _END_OF_TEXT in map(tokenizer.id_to_token, ends):
        return []
    return [
        f"eos_token {text!r} of the tokenizer, id {own}, ends no text: the model's files say "
        f"{list(ends)}; add it to eos_token_id of {GENERATION} if texts are to end there"
    ]


def _around(tokenizer: tokenizers.Tokenizer, ids: list[int], bos: int | None) -> list[str]:
    """Say what tokenizer.json puts around a text and `Tokenizer.encode` does not."""
    others = [tokenizer.id_to_token(i) for i in (ids[1:] if ids[:1] == [bos] else ids)]
    if not others:
        return []
    return [
        f"{JSON} puts {', '.join(map(repr, others))} around a text: not done here, where texts are "
        "continued; give such tokens yourself"
    ]
