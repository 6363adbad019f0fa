"""Names of another implementation's intermediates, and their layouts, as a user declares them.

Nothing is guessed: what is not named is declared absent, and no axes are moved but those stated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from jaxllama.errors import InputError, join_problems
from parity.subjects.adapters.layouts import PARAMETERS, Tap, kind_of, misfit
from parity.taps import AXES, GRAD_TAPS

# What a forward pass shows, and one through a cache.
SHOWN = {kind: axes for kind, axes in AXES.items() if kind not in GRAD_TAPS}


# Places of those that showed nothing that a message names.
_SAID = 6


class Calls:
    """What successive calls of one function give, over and over.

    Args:
        taps: of the first call, the second, and so on; None for a call that shows nothing.
    """

    def __init__(self, *taps: str | Tap | None) -> None:
        self.taps = taps


Named = str | Tap | Sequence[str | Tap] | Calls
Names = Mapping[str, Named]
Parameters = Mapping[str, str | Tap]


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
            or a function's with `()` (`embedder.encode()`, `jax.nn.softmax()`, or of every object
            of a class `package.Cache.update()`), each with `:input` for what goes in; `output` for
            what the whole call returns.

    Raises:
        InputError: unknown taps or axes, a tap named twice; all of them at once.
    """
    found, problems, seen = [], [], set()
    for place, named in names.items():
        calls = _calls(named)
        for tap in (tap for call in calls for tap in call):
            problems += [f"{place}: {said}" for said in _faults(tap, SHOWN)]
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


def unshown(names: Names, missing: Collection[str], layers: int) -> str | None:
    """Say which names showed nothing of some taps, and what to do; None if all did.

    Args:
        names: from places to taps.
        missing: full names of taps.
        layers: L.
    """
    silent = []
    for place, named in names.items():
        for tap in (tap for call in _calls(named) for tap in call):
            every = [tap.name.replace("{i}", str(i)) for i in range(layers)]
            lost = [i for i, name in enumerate(every) if name in missing]
            if "{i}" not in tap.name:
                silent += [f"{place} ({tap.name})"] if lost else []
            elif lost:
                which = "" if len(lost) == layers else f", layers {', '.join(map(str, lost))}"
                silent.append(f"{place} ({tap.name}{which})")
    if not silent:
        return None
    some = ", ".join(silent[:_SAID]) + (f" and {len(silent) - _SAID} more" * (len(silent) > _SAID))
    return (
        f"names that never showed: {some}: nothing of that name was called in the pass. A module"
        " that a transformation splits and merges (jit, scan, a remat bound when it was defined) is"
        " another object in there: name its class's method, `package.Class.__call__()`, and run it"
        " under jax.disable_jit(), or name what surrounds it"
    )


def kinds_of(places: Sequence[Site]) -> set[str]:
    """Return the kinds of taps that show at some places."""
    return {kind_of(tap) for site in places for call in site.calls for tap in call}


def _calls(named: Named) -> tuple[tuple[Tap, ...], ...]:
    if isinstance(named, Calls):
        return tuple(() if one is None else (_tap(one),) for one in named.taps)
    several = [named] if isinstance(named, str | Tap) else named
    return (tuple(_tap(one) for one in several),)


def _tap(named: str | Tap) -> Tap:
    return Tap(named) if isinstance(named, str) else named


def parameters_of(names: Parameters) -> dict[str, Tap]:
    """Read a map of parameters.

    Args:
        names: from a parameter's own name to its canonical one, `{i}` standing for the layer; a
            parameter that holds all layers has none in its own name, and an axis L.

    Returns:
        Canonical names and layouts by own names.

    Raises:
        InputError: unknown parameters or axes, a parameter named twice; all of them at once.
    """
    found, problems = {}, []
    for own, named in names.items():
        found[own] = tap = _tap(named)
        problems += [f"{own}: {said}" for said in _faults(tap, PARAMETERS)]
        stacked = "L" in (tap.axes or "")
        if ("{i}" in tap.name) != (("{i}" in own) or stacked) or ("{i}" in own and stacked):
            problems.append(f"{own}: layers are told apart by {{i}} in both names or by an axis L")
        if [one.name for one in found.values()].count(tap.name) > 1:
            problems.append(f"{own}: {tap.name} is named twice")
    if not names:
        problems.append("no parameters are named: map those whose gradients are to be judged")
    if problems:
        raise InputError(join_problems("parameters", problems))
    return found


def _faults(tap: Tap, known: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a name and its layout.

    Args:
        tap: as declared.
        known: canonical axes by kind.
    """
    kind = kind_of(tap)
    layered = kind.startswith(("layers.", "cache.", "model.layers."))
    if kind not in known or ("{i}" in tap.name) != layered:
        what, example = "tap", "layers.{i}.q_proj or logits"
        if known is PARAMETERS:
            what, example = "parameter", "model.layers.{i}.mlp.up_proj.weight or lm_head.weight"
        return [f"{tap.name!r} is no canonical {what}, such as {example}"]
    if not (isinstance(tap.scale, int | float) and math.isfinite(tap.scale) and tap.scale):
        return [f"scale {tap.scale!r} of {tap.name}: expected a number, and not 0"]
    return misfit(tap.axes, known[kind], stacked=known is PARAMETERS, name=tap.name)
