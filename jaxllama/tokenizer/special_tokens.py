"""Which tokens are special, and for what: the files beside tokenizer.json.

They say it in four places, of which newer ones leave older ones unread: `added_tokens_decoder` of
tokenizer_config.json, special_tokens_map.json, added_tokens.json, and the names in
tokenizer_config.json (`bos_token`, or `extra_special_tokens` for those without a name).

Source: `PreTrainedTokenizerBase._from_pretrained` in Hugging Face transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from jaxllama import files
from jaxllama.errors import CheckpointError
from jaxllama.tokenizer.settings import check_map

MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
_SETTINGS = "tokenizer_config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("extra_special_tokens", "additional_special_tokens")
_FIELDS = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}


@dataclass(frozen=True)
class SpecialTokens:
    """What the files name.

    Attributes:
        listed: tokens by id, with how they are found in a text.
        roles: tokens by the name of what they are for.
        others: special tokens without a name.
        notes: what is odd and does no harm.
    """

    listed: Mapping[int, AddedToken]
    roles: Mapping[str, AddedToken]
    others: tuple[AddedToken, ...]
    notes: tuple[str, ...]

    @property
    def variables(self) -> dict[str, str]:
        """Texts by role: what templates call `bos_token` and so on."""
        return {name: token.content for name, token in self.roles.items()}


def read_special_tokens(
    found: Mapping[str, bytes], settings: Mapping[str, Any], tokenizer: Tokenizer, source: str
) -> SpecialTokens:
    """Read what the files name.

    Args:
        found: contents by file name.
        settings: of tokenizer_config.json.
        tokenizer: of tokenizer.json.
        source: what to call the files in an error.

    Raises:
        CheckpointError: a token is no text, or no description of one.
    """
    stated = {key: value for key, value in settings.items() if value is not None}
    older = _older(found, source)
    if "added_tokens_decoder" in settings:
        left = {key: stated.get(key) for key in ROLES if key in older}
        notes = _contradicted(_SETTINGS, left, MAP, older)
        older, listed = {}, _listed(stated.get("added_tokens_decoder"), source)
    else:
        notes = _contradicted(MAP, older, _SETTINGS, stated)
        listed = _added(found, {**stated, **older}, source)
        listed |= tokenizer.get_added_tokens_decoder()
    by_text = {token.content: token for token in listed.values()}

    def token(value: Any, where: str) -> AddedToken:
        made = _token(value, f"{source}: {where}")
        return by_text.get(made.content, made)

    extra = _extra(stated, older, source)
    own = extra if isinstance(extra, Mapping) else {}
    named = _by_name(stated, older, own)
    roles = {key: token(value, f"{key} in {_SETTINGS}") for key, value in named.items()}
    if tokenizer.padding is not None and "pad_token" not in roles:
        roles["pad_token"] = token(tokenizer.padding["pad_token"], "padding in tokenizer.json")
    others = () if own else tuple(token(one, f"{LISTS[0]} in {_SETTINGS}") for one in extra)
    return SpecialTokens(listed, roles, others, tuple(notes))


def _by_name(
    stated: Mapping[str, Any], older: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return tokens by name, in the order in which new ones get their ids.

    Of the names that every model has the older file's word is taken, where it is read at all; of a
    model's own, such as image_token, the newer one's.
    """
    models = [
        {
            key: value
            for key, value in one.items()
            if key not in ROLES and key.endswith("_token") and isinstance(value, str | Mapping)
        }
        for one in (stated, older)
    ]
    newer = {key: value for key, value in models[0].items() if isinstance(value, str)}
    described = {key: value for key, value in models[0].items() if key not in newer}
    both = {**stated, **older}
    roles = {key: both[key] for key in ROLES if key in both}
    return {**roles, **described, **models[1], **newer, **own}


def _extra(stated: Mapping[str, Any], older: Mapping[str, Any], source: str) -> Any:
    """Return the special tokens without a name, or names of a model's own, such as image_token."""
    extra: Any = next((stated[name] for name in LISTS if stated.get(name)), [])
    more = older.get(LISTS[0])
    if isinstance(more, list) and isinstance(extra, list):
        extra = [*extra, *(one for one in more if one not in extra)]
    elif more or not extra:
        extra = more or older.get(LISTS[1]) or []
    if not isinstance(extra, list | Mapping):
        raise CheckpointError(
            f"{source}: {LISTS[0]} is {extra!r:.60}, expected a list or an object"
        )
    return extra


def _token(value: Any, where: str) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        given = {key: item for key, item in value.items() if key in _FIELDS}
        try:
            return AddedToken(**given)
        except TypeError as error:
            raise CheckpointError(f"{where}: {error}") from error
    raise CheckpointError(f"{where} is {value!r:.60}, expected a text or an object with content")


def _listed(stated: Any, source: str) -> dict[int, AddedToken]:
    if stated is None:
        return {}
    if not isinstance(stated, Mapping) or not all(str(key).isdecimal() for key in stated):
        raise CheckpointError(
            f"{source}: added_tokens_decoder in {_SETTINGS} is no object of tokens by id"
        )
    return {
        int(key): _token(value, f"{source}: added_tokens_decoder {key}")
        for key, value in stated.items()
    }


def _older(found: Mapping[str, bytes], source: str) -> dict[str, Any]:
    """Return what special_tokens_map.json says; all that it names is special."""
    if MAP not in found:
        return {}
    stated = files.parse_object(found[MAP], f"{source}: {MAP}")
    check_map(stated, f"{source}: {MAP}")
    return {
        key: {**value, "special": True} if isinstance(value, Mapping) and key != LISTS[0] else value
        for key, value in stated.items()
        if value is not None
    }


def _added(
    found: Mapping[str, bytes], stated: Mapping[str, Any], source: str
) -> dict[int, AddedToken]:
    """Return what added_tokens.json lists: ids by text, special where they are named elsewhere."""
    if ADDED not in found:
        return {}
    listed = stated.get(LISTS[0])
    named = [_text(stated[key]) for key in ROLES if key in stated]
    named += [_text(one) for one in listed] if isinstance(listed, list) else []
    made = {}
    for text, number in files.parse_object(found[ADDED], f"{source}: {ADDED}").items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise CheckpointError(f"{source}: {ADDED}: {text!r} has id {number!r}")
        made[number] = AddedToken(text, normalized=text not in named, special=text in named)
    return made


def _text(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _contradicted(
    taken: str, ours: Mapping[str, Any], left: str, theirs: Mapping[str, Any]
) -> list[str]:
    """Say which tokens a file that is left names otherwise than the one that is taken."""
    said = [
        f"{key} {_text(theirs[key])!r}, {taken} {_text(ours[key])!r}"
        for key in ROLES
        if key in ours and key in theirs and _text(theirs[key]) != _text(ours[key])
    ]
    return [f"{left} is left, as in transformers 5: it has {'; '.join(said)}"] if said else []
