"""Subjects that installed packages publish, by name: the entry points `parity.subjects`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from jaxllama.errors import InputError
from parity.user_code import first_line

GROUP = "parity.subjects"
# Hardly any library is float64 throughout: what says nothing of it is run in these.
DTYPES = ("f32", "bf16")


def published_names() -> tuple[str, ...]:
    """Return the names that are published; nothing of what they name is imported."""
    return tuple(sorted(entry_points(group=GROUP).names))


def load_published(name: str) -> tuple[Any, tuple[str, ...]]:
    """Return what is published under a name, and the dtypes that it is run in unless told.

    These are `DTYPES` of its module, if that has any.

    Raises:
        InputError: two distributions publish the name, or it cannot be loaded.
    """
    point = _only(name)
    try:
        found = point.load()
        dtypes = getattr(importlib.import_module(point.module), "DTYPES", DTYPES)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"subject {name}: entry point {point.value} of {_distribution(point)} does not load "
            f"({type(error).__name__}: {first_line(error)}); repair that package or uninstall it"
        ) from error
    if callable(found):
        found = _asking_for_its_library(found, name, point)
    return found, tuple(dtypes)


def _only(name: str) -> EntryPoint:
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(points) > 1:
        whose = " and ".join(f"{p.value} of {_distribution(p)}" for p in points.values())
        raise InputError(
            f"subject {name}: published twice, {whose}; uninstall one, or name it as module:name"
        )
    return next(iter(points.values()))


def _distribution(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _asking_for_its_library(
    make: Callable[..., Any], name: str, point: EntryPoint
) -> Callable[..., Any]:
    """Return a factory that says how to install what it imports when it is called.

    `REQUIREMENT` of its module is what pip takes.
    """

    @functools.wraps(make)
    def made(*arguments: Any) -> Any:
        try:
            return make(*arguments)
        except ModuleNotFoundError as error:
            wanted = getattr(importlib.import_module(point.module), "REQUIREMENT", error.name)
            raise InputError(
                f"subject {name}: {error.name} is not installed here; `pip install {wanted}`"
            ) from error

    return made
