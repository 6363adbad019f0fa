"""Which modules an adapter is for, and with which rank and alpha: PEFT's rules.

PEFT goes by names: a key of a pattern is a regular expression of the whole name or of its end, and
`target_modules` is one expression of the whole name, or a list of names and ends.
`tests/jaxllama/checkpoint/lora/test_peft.py` holds these to PEFT.

Source: `get_pattern_key` in PEFT 0.21's `utils/other.py`, `check_target_module_exists` in its
`tuners/tuners_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jaxllama.errors import CheckpointError
from jaxllama.sandbox.process import ask


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which modules are adapted.

    Attributes:
        modules: a regular expression of whole names, or names and ends of names; None for all.
        excluded: likewise, of modules that are left out.
        saved: regular expressions of modules, or modules above, that are stored whole.
        layers: numbers of the layers that are adapted; None for all. With a list alone.
        containers: regular expressions of what stands before a layer's number.
    """

    modules: str | Sequence[str] | None
    excluded: str | Sequence[str] = ()
    saved: Sequence[str] = ()
    layers: Sequence[int] | None = None
    containers: Sequence[str] = ()

    def has(self, module: str) -> bool:
        """Whether a module is adapted, by its name in the model."""
        if self.excluded and _is_named(module, self.excluded):
            return False
        if self.is_saved(module):
            return False
        if self.modules is None:
            return True
        if not _is_named(module, self.modules):
            return False
        # A list names a module in full without regard to its layer.
        whole = isinstance(self.modules, str) or module in self.modules
        return whole or self.layers is None or _layer(module, self.containers) in self.layers

    def is_saved(self, module: str) -> bool:
        """Whether a module is stored whole, or lies in one that is."""
        return any(_match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved)


def _is_named(module: str, names: str | Sequence[str]) -> bool:
    if isinstance(names, str):
        return _match(names, module, whole=True) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer(module: str, containers: Sequence[str]) -> int | None:
    """Return the number of the layer that a module is in."""
    patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in containers] or [r".*?\.[^.]*\.(\d+)\."]
    found = next(filter(None, (_match(pattern, module) for pattern in patterns)), None)
    return int(found[1] or 0) if found else None


def by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first key that is a module's name, or the end of it after a dot.

    Args:
        patterns: values by regular expression.
        module: its name in the model.
        default: where no key is.
    """
    for key, value in patterns.items():
        if matches(key, module):
            return value
    return default


def matches(key: str, module: str) -> bool:
    """Whether a pattern's key is for a module."""
    return _match(rf"(.*\.)?({key})$", module) is not None


@lru_cache(maxsize=1 << 16)
def _match(expression: str, module: str, whole: bool = False) -> Sequence[str | None] | None:
    """Return what matches at a name's beginning, or all of it, then the groups; None if nothing.

    Raises:
        CheckpointError: the expression fails, or takes too long.
    """
    said = ask("match", expression, {"text": module, "whole": whole})
    if "groups" in said:
        return said["groups"]
    if "beyond" in said:
        raise CheckpointError(f"the expression {expression!r:.80} {said['beyond']}")
    raise CheckpointError(f"{expression!r:.80} is no regular expression: {said['failed']}")


def check_expressions(expressions: Iterable[str], where: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        CheckpointError: with the first of them.
    """
    for expression in expressions:
        try:
            _match(expression, "")
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
