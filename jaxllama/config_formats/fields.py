"""What the fields of a metadata file mean: an allow list, and the words for what is not on it.

A field is of one of four kinds: harmless whatever it holds (or looked at by the reader itself),
harmless with some values alone, harmful with any other, and unknown. Unknown fields could change
what is computed, so that they are refused too; but they come last, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr  # of bounded length: a value may be a whole vocabulary
from typing import Any

_NAMED = 8  # unknown fields that are named, of one file
# What stands for no token: -1, the -100 of losses, both as signed and unsigned integers of the
# widths that files store ids in; and words that templates of files leave.
_NO_TOKEN = (-1, -100, *(none % 2**bits for none in (-1, -100) for bits in (32, 64)))
_NO_TOKEN_WORDS = ("", "none", "null")


@dataclass(frozen=True)
class Only:
    """A field that changes nothing while it holds one of these values.

    Attributes:
        values: the harmless ones; True is not 1 here, and False not 0.
        means: what any other value would mean.
        remedy: what to do about that, where something can be done.
        aliases: other names that publishers give to the first of `values`, in lower case.
        required: whether the field has to be there, holding something.
        each: whether it may be a list, as of a value for each layer.
    """

    values: tuple[Any, ...]
    means: str
    remedy: str = ""
    aliases: tuple[Any, ...] = ()
    required: bool = False
    each: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a value is one of the harmless ones, or a list of such where each may be."""
        listed = value if self.each and isinstance(value, list) else [value]
        return all(is_one_of(one, self.values) for one in listed)

    def spelt(self, value: Any) -> str:
        """Return which text of `values` a text is another name or spelling of; empty if of none."""
        if not isinstance(value, str):
            return ""
        text = value.strip().lower()
        same = [one for one in self.values if isinstance(one, str) and one.lower() == text]
        return same[0] if same else self.values[0] if text in self.aliases else ""


@dataclass(frozen=True, kw_only=True)
class FieldTable:
    """The fields known of one kind of file.

    Attributes:
        read: looked at by the reader itself.
        harmless: nothing depends on them.
        only: harmless with some values.
        harmless_under: beginnings of names that the format leaves to anybody.
        kind: what a field is called, such as `key`.
        could: what an unknown one could do.
    """

    read: frozenset[str]
    harmless: frozenset[str] = frozenset()
    only: Mapping[str, Only] = field(default_factory=dict)
    harmless_under: tuple[str, ...] = ()
    kind: str = "field"
    could: str = "change the numbers"

    def harmful(self, content: Mapping[str, Any]) -> list[str]:
        """Return one line for each field that means what is not supported, or lacks."""
        said = []
        for name, rule in self.only.items():
            value = content.get(name)
            if rule.required and value is None:
                said.append(f"{name} is missing, expected {rule.values[0]!r}")
            elif name in content and not (rule.allows(value) or rule.spelt(value)):
                remedy = f"; {rule.remedy}" if rule.remedy else ""
                said.append(
                    f"{name} {repr(value)} means {rule.means}, which is not supported{remedy}"
                )
        return said

    def unknown(self, content: Mapping[str, Any]) -> list[str]:
        """Return a line about the fields that are in no list, or none; null says nothing."""
        known = self.read | self.harmless | self.only.keys()
        found = {
            name: value
            for name, value in content.items()
            if value is not None and name not in known and not self._is_anybodys(name)
        }
        if not found:
            return []
        named = [f"{name} {repr(value)}" for name, value in list(found.items())[:_NAMED]]
        if len(found) == 1:
            return [
                f"{named[0]} is not a known {self.kind} and could {self.could}; "
                "remove it if it is certain not to"
            ]
        rest = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return [
            f"{len(found)} {self.kind}s are not known and could {self.could}: {', '.join(named)}"
            f"{rest}; remove those that are certain not to"
        ]

    def aliased(self, content: Mapping[str, Any]) -> list[str]:
        """Return a note for each field whose value is read under its usual name."""
        return [
            f"{name} {content[name]!r} is read as {usual!r}, of which it is another name"
            for name, rule in self.only.items()
            if not rule.allows(content.get(name)) and (usual := rule.spelt(content.get(name)))
        ]

    def _is_anybodys(self, name: Any) -> bool:
        return isinstance(name, str) and name.startswith(self.harmless_under or ("\0",))


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `allowed`, where True is not 1 and False is not 0."""
    return any(isinstance(value, bool) == isinstance(a, bool) and bool(value == a) for a in allowed)


def token_id(name: str, value: Any, notes: list[str]) -> Any:
    """Return a stored token id, None where it says that there is none: null, -1, -100, "none", [].

    Args:
        name: of the field, for the note.
        value: as stored; what is no id is returned as it is, to be refused.
        notes: gets a line where anything but null was read so.
    """
    absent = (isinstance(value, list) and not value) or (
        value.strip().lower() in _NO_TOKEN_WORDS
        if isinstance(value, str)
        else isinstance(value, int) and value in _NO_TOKEN
    )
    if absent:
        notes.append(f"{name} {value!r} is read as no such token")
        return None
    return value


def token_ids(name: str, value: Any, notes: list[str]) -> tuple[Any, ...]:
    """Return the ids of a field that holds one, a list of them, or none; see `token_id`."""
    listed = value if isinstance(value, list | tuple) else [value]
    found = (token_id(name, item, notes) for item in listed)
    return tuple(item for item in found if item is not None)
