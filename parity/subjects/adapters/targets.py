"""Finding in a module what a user's names name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from jaxllama.errors import InputError, join_problems
from parity.subjects.adapters.names import Site


@dataclass(frozen=True)
class Target:
    """A callable that is watched.

    Attributes:
        owner: the class or Python module that holds it.
        attribute: its name there.
        instance: the module whose calls count; None for a function.
        layer: which layer it is in; None where its calls are counted through the layers.
        site: what it shows.
    """

    owner: Any
    attribute: str
    instance: Any
    layer: int | None
    site: Site


def find_targets(module: Any, method: str, places: list[Site], layers: int) -> list[Target]:
    """Find what the names name; all that is missing in one error."""
    found, problems = [], []
    for site in places:
        for layer in range(layers) if "{i}" in site.path else [None]:
            path = site.path.replace("{i}", str(layer))
            try:
                found.append(_target(module, method, path, layer, site))
            except (AttributeError, KeyError, IndexError, TypeError, ImportError, ValueError):
                kind = "no function or method" if site.function else "no module"
                problems.append(f"{path}: {kind} of that name in {type(module).__name__}")
    if problems:
        raise InputError(join_problems("names", problems[:20]))
    return found


def _target(module: Any, method: str, path: str, layer: int | None, site: Site) -> Target:
    if not site.function:
        inner = walk(module, path)
        if not callable(inner) or isinstance(inner, type):
            raise TypeError(path)
        return Target(type(inner), method, inner, layer, site)
    head, _, last = path.rpartition(".")
    try:
        instance = walk(module, head) if head else module
        if not callable(getattr(type(instance), last)):
            raise AttributeError(path)
        return Target(type(instance), last, instance, layer, site)
    except (AttributeError, KeyError, IndexError, TypeError):
        owner = _imported(head)
        if not callable(getattr(owner, last)):
            raise TypeError(path) from None
        return Target(owner, last, None, layer, site)


def walk(module: Any, path: str) -> Any:
    """Return what lies at a path of attributes and numbers."""
    for part in path.split("."):
        if part.isdigit() and hasattr(module, "__getitem__"):
            module = module[int(part)]
        else:
            module = getattr(module, part)
    return module


def _imported(path: str) -> Any:
    """Return a Python module, or a class in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        parent, _, last = path.rpartition(".")
        if not parent:
            raise
        return getattr(_imported(parent), last)
