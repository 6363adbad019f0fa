"""Names of another implementation's intermediates, and their layouts, as a user declares them.

Nothing is guessed: what is not named is declared absent, and no axes are moved but those stated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, join_problems
from parity.scenarios import Inputs
from parity.taps import AXES

LETTERS = "BTSNKGHDFV1"


@dataclass(frozen=True)
class Tap:
    """Which canonical tap a value is, and how it is laid out.

    Attributes:
        name: canonical, with `{i}` for the layer: `layers.{i}.q_proj`.
        axes: the value's, in the letters of `parity.taps`, G for query heads to a kv head, 1 for
            an axis of length one, axes in parentheses lie in one: `BNTH`, `BT(NH)`, `BKGTS`. None
            where the layout is canonical.
        item: of a tuple or mapping of results, which; of arguments, its number or its name.
    """

    name: str
    axes: str | None = None
    item: int | str | None = None


class Calls:
    """What successive calls of one function give, over and over.

    Args:
        taps: of the first call, the second, and so on.
    """

    def __init__(self, *taps: str | Tap) -> None:
        self.taps = taps


Named = str | Tap | Sequence[str | Tap] | Calls
Names = Mapping[str, Named]


@dataclass(frozen=True)
class Site:
    """A place in the implementation where taps show.

    Attributes:
        path: of a module, or of a function without its `()`; empty for the whole call.
        function: whether it is one, not a module.
        input: whether its arguments are meant, not its results.
        calls: the taps of each of its calls in turn.
    """

    path: str
    function: bool
    input: bool
    calls: tuple[tuple[Tap, ...], ...]


def sites(names: Names) -> list[Site]:
    """Read a map of names.

    Args:
        names: from a place to taps. Places: a module's path (`layers.{i}.attn.q_proj`), a method's
            or a function's with `()` (`embedder.encode()`, `jax.nn.softmax()`), each with `:input`
            for what goes in; `output` for what the whole call returns.

    Raises:
        InputError: unknown taps or axes, a tap named twice; all of them at once.
    """
    found, problems, seen = [], [], set()
    for place, named in names.items():
        calls = _calls(named)
        for tap in (tap for call in calls for tap in call):
            problems += [f"{place}: {said}" for said in _faults(tap)]
            if tap.name in seen:
                problems.append(f"{place}: {tap.name} is named twice")
            seen.add(tap.name)
        path, _, end = place.partition(":")
        if end not in ("", "input", "output"):
            problems.append(f"{place}: after the colon stands input or output")
        function = path.endswith("()")
        whole = "" if path == "output" else path.removesuffix("()")
        found.append(Site(whole, function, end == "input", calls))
    if not names:
        problems.append("no names are given: map at least output to logits")
    if problems:
        raise InputError(join_problems("names", problems))
    return found


def _calls(named: Named) -> tuple[tuple[Tap, ...], ...]:
    if isinstance(named, Calls):
        return tuple((_tap(one),) for one in named.taps)
    several = [named] if isinstance(named, str | Tap) else named
    return (tuple(_tap(one) for one in several),)


def _tap(named: str | Tap) -> Tap:
    return Tap(named) if isinstance(named, str) else named


def kind_of(tap: Tap) -> str:
    """Return a tap's canonical name without its layer."""
    return tap.name.replace(".{i}", "")


def _faults(tap: Tap) -> list[str]:
    kind = kind_of(tap)
    layered = kind.startswith("layers.")
    if kind not in AXES or kind.startswith("cache.") or ("{i}" in tap.name) != layered:
        return [f"{tap.name!r} is no canonical tap, such as layers.{{i}}.q_proj or logits"]
    if tap.axes is None:
        return []
    letters = re.sub(r"[()]", "", tap.axes)
    given = sorted(letters.replace("1", ""))
    wanted = {"".join(sorted(expanded)) for expanded in _expansions(AXES[kind])}
    if set(letters) - set(LETTERS) or "".join(given) not in wanted or not _groups(tap.axes):
        return [f"axes {tap.axes!r} of {tap.name} do not hold those of {AXES[kind]!r}, once each"]
    return []


def _expansions(canonical: str) -> tuple[str, str]:
    """Return canonical axes as they are, and with heads as kv heads by their groups."""
    return canonical, canonical.replace("N", "KG")


def _groups(axes: str) -> list[str]:
    """Split axes into those of the array itself: `BT(NH)` -> B, T, NH. Empty if malformed."""
    found = re.findall(r"\((\w+)\)|(\w)", axes)
    groups = ["".join(pair) for pair in found]
    whole = "".join(f"({g})" if len(g) > 1 or f"({g})" in axes else g for g in groups)
    return groups if whole == axes else []


def sizes_of(config: LlamaConfig, inputs: Inputs) -> dict[str, int]:
    """Return how long each axis is."""
    batch, columns = inputs.tokens.shape
    return {
        "B": batch,
        "T": columns,
        "S": columns,
        "N": config.num_attention_heads,
        "K": config.num_key_value_heads,
        "G": config.num_attention_heads // config.num_key_value_heads,
        "H": config.head_dim,
        "R": config.head_dim // 2,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "1": 1,
    }


def canonical(array: np.ndarray, tap: Tap, sizes: Mapping[str, int]) -> np.ndarray:
    """Bring an array from its declared layout into the canonical one.

    An array that is not laid out as declared is left as it is: its shape is then a finding.
    """
    if tap.axes is None or array.shape != _shape(tap.axes, sizes):
        return array
    letters, order, shape = _plan(tap, sizes)
    parts = array.reshape([sizes[letter] for letter in letters])
    return parts.transpose(order).reshape(shape)


def native(array: np.ndarray, tap: Tap, sizes: Mapping[str, int]) -> np.ndarray:
    """Bring an array from the canonical layout into the declared one."""
    if tap.axes is None:
        return array
    letters, order, _ = _plan(tap, sizes)
    parts = array.reshape([sizes[letters[place]] for place in order])
    return parts.transpose(np.argsort(order)).reshape(_shape(tap.axes, sizes))


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in group) for group in _groups(axes))


def _plan(tap: Tap, sizes: Mapping[str, int]) -> tuple[list[str], list[int], tuple[int, ...]]:
    """Return the declared letters, the order that makes them canonical, the canonical shape."""
    assert tap.axes is not None
    letters = [letter for group in _groups(tap.axes) for letter in group]
    plain, grouped = _expansions(AXES[kind_of(tap)])
    wanted = grouped if "G" in letters else plain
    ones = [place for place, letter in enumerate(letters) if letter == "1"]
    order = [letters.index(letter) for letter in wanted] + ones
    return letters, order, tuple(sizes[letter] for letter in plain)
