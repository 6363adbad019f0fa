"""Watching calls of modules and functions while a foreign forward pass runs.

A class's method or a module's function is exchanged for one that asks who runs it: in a thread
that watches, what goes in and comes out is recorded, and replaced by forced values; elsewhere
nothing changes. The original is put back when the last pass that watches is over.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllama.errors import InputError
from parity.subjects.names import Site, Tap, canonical, native
from parity.subjects.staged import Force, Stages
from parity.taps import split_name


class Shown:
    """One stage's taps, and what is to be put in their places."""

    def __init__(self, force: Force = None) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.force: Mapping[str, np.ndarray] = force or {}


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


class Watch:
    """Records one forward pass into stages.

    Args:
        targets: what to watch.
        stages: where to record.
        layers: L.
        sizes: of the axes.
        visible: which key each query must see [B T S].
        to_numpy: from the framework's array, the same bits.
        like: from an array, one of the framework's in the dtype of another.
    """

    def __init__(
        self,
        targets: list[Target],
        stages: Stages,
        layers: int,
        sizes: Mapping[str, int],
        visible: np.ndarray,
        to_numpy: Callable[[Any], np.ndarray],
        like: Callable[[np.ndarray, Any], Any],
    ) -> None:
        self._targets: dict[tuple[int, str, int | None], list[Target]] = {}
        for one in targets:
            instance = None if one.instance is None else id(one.instance)
            self._targets.setdefault((id(one.owner), one.attribute, instance), []).append(one)
        self._stages, self._layers, self._sizes = stages, layers, sizes
        self._visible, self._to_numpy, self._like = visible, to_numpy, like
        self._counts: Counter[int] = Counter()
        self._stage = 0

    def call(
        self, owner: Any, attribute: str, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Call `original` and record what the targets of it show."""
        found = self._targets.get((id(owner), attribute, None), [])
        offset = 0
        if args:
            mine = self._targets.get((id(owner), attribute, id(args[0])), [])
            offset, found = (1, mine) if mine else (0, found)
        taps = [(one, tap) for one in found for tap in self._turn(one)]
        args, kwargs = list(args), dict(kwargs)
        for _, tap in (pair for pair in taps if pair[0].site.input):
            place: Any = 0 if tap.item is None else tap.item
            holder, place = (kwargs, place) if isinstance(place, str) else (args, place + offset)
            holder[place] = self.tap(tap, holder[place])
        result = original(*args, **kwargs)
        for _, tap in (pair for pair in taps if not pair[0].site.input):
            result = self.result(tap, result)
        return result

    def _turn(self, target: Target) -> list[Tap]:
        """Return what this call of a target shows, its layer filled in."""
        calls = target.site.calls
        layer, turn = divmod(self._counts[id(target)], len(calls))
        self._counts[id(target)] += 1
        indexed = any("{i}" in tap.name for tap in calls[turn])
        if target.layer is not None:
            layer = target.layer
        elif indexed and layer >= self._layers:
            raise InputError(
                f"names: {target.site.path}() was called more often than {len(calls)} times in "
                f"each of {self._layers} layers"
            )
        return [Tap(tap.name.replace("{i}", str(layer)), tap.axes, tap.item) for tap in calls[turn]]

    def result(self, tap: Tap, result: Any) -> Any:
        """Record a result, or one item of it; return what to go on with."""
        if tap.item is None:
            return self.tap(tap, result)
        if isinstance(result, tuple) and isinstance(tap.item, int):
            items = list(result)
            items[tap.item] = self.tap(tap, items[tap.item])
            return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
        value = result[tap.item] if not isinstance(tap.item, str) else _field(result, tap.item)
        self.tap(tap, value)
        return result

    def tap(self, tap: Tap, value: Any) -> Any:
        """Record a value under its canonical name; return it or what is forced."""
        self._reach(tap.name)
        shown: Shown = self._stages.tap
        if tap.name in shown.values:
            raise InputError(f"names: {tap.name} was shown twice in one pass")
        layout = Tap(_pattern(tap.name), tap.axes)
        shown.values[tap.name] = canonical(self._to_numpy(value), layout, self._sizes)
        if tap.name not in shown.force:
            return value
        forced = shown.force[tap.name]
        if tap.name.endswith("attn_scores") and forced.shape == shown.values[tap.name].shape:
            # Hidden cells may hold a mask already, which the reference's scores come before.
            forced = np.where(self._visible[:, None], forced, shown.values[tap.name])
        return self._like(native(forced, layout, self._sizes), value)

    def _reach(self, name: str) -> None:
        """Go on to the stage that a tap belongs to."""
        kind, layer = split_name(name)
        stage = layer + 1 if layer is not None else self._layers + 1
        if kind not in ("norm", "logits") and layer is None:
            stage = 0
        if stage < self._stage:
            raise InputError(f"names: {name} shows after its stage is over; leave it out")
        while self._stage < stage:
            self._stages.turn()
            self._stage += 1

    def finish(self) -> None:
        """Hand over the stages that are left."""
        while self._stage < self._layers + 1:
            self._stages.turn()
            self._stage += 1
        self._stages.hand_over()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this thread's calls."""
        owners = {(id(t.owner), t.attribute): t for ts in self._targets.values() for t in ts}
        with ExitStack() as stack:
            for target in owners.values():
                stack.enter_context(_exchanged(target.owner, target.attribute))
            _present.watch = self
            try:
                yield
            finally:
                _present.watch = None


def _pattern(name: str) -> str:
    kind, layer = split_name(name)
    return name if layer is None else kind.replace("layers.", "layers.{i}.")


def _field(result: Any, item: str) -> Any:
    return result[item] if isinstance(result, Mapping) else getattr(result, item)


class _Present(threading.local):
    watch: Watch | None = None


_present = _Present()
_lock = threading.Lock()
_users: Counter[tuple[int, str]] = Counter()


@contextmanager
def _exchanged(owner: Any, attribute: str) -> Iterator[None]:
    """Have `owner.attribute` ask the thread's watch, while anybody wants that."""
    key = id(owner), attribute
    with _lock:
        _users[key] += 1
        if _users[key] == 1:
            _exchange(owner, attribute)
    try:
        yield
    finally:
        with _lock:
            _users[key] -= 1
            if not _users[key]:
                _restore(owner, attribute)


def _exchange(owner: Any, attribute: str) -> None:
    original = getattr(owner, attribute)
    inherited = attribute not in vars(owner)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        watch = _present.watch
        if watch is None:
            return original(*args, **kwargs)
        return watch.call(owner, attribute, original, args, kwargs)

    watched.parity_original = (original, inherited)  # type: ignore[attr-defined]
    setattr(owner, attribute, watched)


def _restore(owner: Any, attribute: str) -> None:
    original, inherited = getattr(owner, attribute).parity_original
    if inherited:
        delattr(owner, attribute)
    else:
        setattr(owner, attribute, original)
