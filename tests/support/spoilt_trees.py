"""JSON spoilt somewhere: one part of a document replaced, dropped, doubled, renamed or blown up."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

# What no field expects, and what many do and not this one.
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**32, 2**63, 2**64, 10**30, 1e308, 1e-320, 0.5),
    *("", "x", "8", "none", "\x00", "../x", "1e9", "\x1b[2J", "‮", "\ud800", "x" * 3000),
    *([], [1], ["x"], [[]], [None], {}, {"a": 1}, {"": {}}, {"content": 3}, [{"name": "x"}]),
    *(float("nan"), float("inf"), -0.0),
    *("(a+)+$", "{{ x", "{% for i in range(9) %}{{ i }}{% endfor %}", "<|eot_id|>", "▁"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a document; of a long list those of its first items."""
    if path:
        yield path
    if isinstance(value, dict):
        parts = list(value.items())[:60]
    elif isinstance(value, list):
        parts = list(enumerate(value))[:3]
    else:
        return
    for key, part in parts:
        yield from places(part, (*path, key))


def spoilt(document: Any, rng: random.Random) -> Any:
    """Return a copy of a document with one or two of its parts spoilt."""
    copied = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2])):
        if found := list(places(copied)):
            _spoil(copied, rng.choice(found), rng)
    return copied


def _spoil(document: Any, path: tuple[Any, ...], rng: random.Random) -> None:
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    key, kind = path[-1], rng.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice([f"{key}x", "", "\ud800", f"\x1b]{key}", "y" * 600])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 3:
        holder[key] = [holder[key]]
    elif kind == 4:
        holder[key] = str(holder[key])
    elif kind == 5:
        deep: Any = holder[key]
        for _ in range(rng.choice([20, 70, 300])):
            deep = [deep]
        holder[key] = deep
    else:
        holder[key] = rng.choice(VALUES)
