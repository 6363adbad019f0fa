"""Watching calls of modules and functions while a foreign forward pass runs.

A class's method or a module's function is exchanged for one that asks who runs it: in a thread
that watches, what goes in and comes out is handed on, and may be replaced; elsewhere nothing
changes. The original is put back when the last pass that watches is over.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from jaxllama.errors import InputError
from parity.subjects.adapters.layouts import Tap
from parity.subjects.adapters.shown import argument_of, array_of, is_array, item_of, resolved
from parity.subjects.adapters.targets import Target

# Is given what a value is and the value, and returns what to go on with.
Seen = Callable[[Tap, Any], Any]


class CallInterceptor:
    """Hands on what one pass shows.

    Args:
        targets: what to watch.
        layers: L.
        seen: is given every value that is named, and returns what to go on with.
        identity: of a module, what a copy of it over the same arrays shares with it; None where
            there is nothing.
        transparent: functions of functions, by owner and name, that are left out: what they are
            given is run as it is.
    """

    def __init__(
        self,
        targets: list[Target],
        layers: int,
        seen: Seen,
        identity: Callable[[Any], Hashable] = lambda _: None,
        transparent: Sequence[tuple[Any, str]] = (),
    ) -> None:
        self._targets: dict[tuple[int, str, int | None], list[Target]] = {}
        for one in targets:
            instance = None if one.instance is None else id(one.instance)
            self._targets.setdefault((id(one.owner), one.attribute, instance), []).append(one)
        self._layers, self._seen = layers, seen
        self._counts: Counter[int] = Counter()
        self._identity = identity
        self._transparent = {(id(owner), name): (owner, name) for owner, name in transparent}
        self._instances = {
            id(one.instance): one.instance for one in targets if one.instance is not None
        }
        self._originals: dict[Hashable, int | None] | None = None

    def call(
        self, owner: Any, attribute: str, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Call `original` and hand on what the targets of it show."""
        if (id(owner), attribute) in self._transparent and args:
            return args[0]
        found = self._targets.get((id(owner), attribute, None), [])
        if args:
            instance = self._original(args[0])
            found = self._targets.get((id(owner), attribute, instance), found)
        # A method's first argument is the object, which counts where it is an array itself.
        bound = isinstance(owner, type) and not (args and is_array(args[0]))
        taps = [(one, tap) for one in found for tap in self._turn(one)]
        args, kwargs = list(args), dict(kwargs)
        for _, tap in (pair for pair in taps if pair[0].site.input):
            holder, place = argument_of(original, args, kwargs, tap, bound=bound)
            holder[place] = self._seen(tap, array_of(holder[place], tap))
        result = original(*args, **kwargs)
        for _, tap in (pair for pair in taps if not pair[0].site.input):
            result = self.result(tap, result)
        return result

    def _original(self, instance: Any) -> int | None:
        """Return the id of a module, or of the one that it was split and merged from."""
        if id(instance) in self._instances:
            return id(instance)
        known = self._identity(instance)
        if known is None:
            return id(instance)
        if self._originals is None:
            self._originals = {}
            for one, there in self._instances.items():
                key = self._identity(there)
                self._originals[key] = None if key in self._originals else one
        return self._originals.get(known)

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
        return [replace(tap, name=tap.name.replace("{i}", str(layer))) for tap in calls[turn]]

    def result(self, tap: Tap, result: Any) -> Any:
        """Hand on a result, or one item of it; return what to go on with."""
        tap = resolved(result, tap)
        value = self._seen(tap, item_of(result, tap))
        if tap.item is None:
            return value
        if isinstance(result, tuple) and isinstance(tap.item, int):
            items = list(result)
            items[tap.item] = value
            return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this thread's calls."""
        owners = {(id(t.owner), t.attribute): t for ts in self._targets.values() for t in ts}
        with ExitStack() as stack:
            for target in owners.values():
                stack.enter_context(_exchanged(target.owner, target.attribute))
            for owner, attribute in self._transparent.values():
                stack.enter_context(_exchanged(owner, attribute))
            _present.watch = self
            try:
                yield
            finally:
                _present.watch = None


class _Present(threading.local):
    watch: CallInterceptor | None = None


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
